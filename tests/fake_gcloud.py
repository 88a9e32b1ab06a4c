"""A `gcloud` for tests: queued resources, TPU VMs and a bucket, all in one folder.

It records its calls and keeps its state in the folder that FAKE_GCLOUD names. A VM's workers
are folders there, in which `ssh` executes its scripts for real; what they install is a Python
without packages, and what they train is `RUN` below. `FakeCloud` is the tests' side of it.
"""

import fcntl
import json
import os
import sys
import time
from pathlib import Path

# Every call is a process of its own: the rest is imported where it is needed.

# The checkout's bn_vgg/main.py: two epochs, and what is to go wrong.
RUN = """
import json, os, sys, time
from pathlib import Path

cloud = Path(os.environ["FAKE_GCLOUD"])
worker = os.environ["FAKE_HOST"].rpartition("-")[2]
(address,) = [a.partition("=")[2] for a in sys.argv if a.startswith("--workdir=")]
workdir = cloud / "bucket" / address.removeprefix("gs://")
workdir.mkdir(parents=True, exist_ok=True)
with (workdir / f"starts{worker}").open("a+") as starts:
    starts.write(os.environ["FAKE_HOST"] + " " + " ".join(sys.argv[1:]) + chr(10))
    starts.seek(0)
    attempt = len(starts.readlines())
orders = json.loads((cloud / "orders.json").read_text())["runs"]
planned = orders.get(f"{workdir.name}@{worker}", [])
order = planned[attempt - 1] if attempt <= len(planned) else "done"
if order == "fail":
    print("Traceback (most recent call last):", "ValueError: no such image", "", sep=chr(10))
    sys.exit(1)
if order == "hang" and worker != "0":
    time.sleep(600)
metrics = workdir / "metrics.jsonl"
lines = metrics.read_text().splitlines() if metrics.exists() else []
for epoch in range(len(lines) + 1, 3):
    lines.append(json.dumps({"epoch": epoch, "attempt": attempt}))
    if worker == "0":
        (workdir / "config.json").write_text("{}")
        (workdir / "data.json").write_text("{}")
        metrics.write_text("".join(line + chr(10) for line in lines))
        print(f"epoch   {epoch}/2  valid error 0.250", flush=True)
    if order == "hang":
        time.sleep(600)
if worker == "0" and order != "silent":
    (workdir / "checkpoints").mkdir(exist_ok=True)
    (workdir / "checkpoints" / "2").write_text("large")
    (workdir / "result.json").write_text(json.dumps({"attempt": attempt}))
"""
# As a module, so that it is compiled once.
_GCLOUD = """#!/bin/sh
export PYTHONPATH={folder}
exec {python} -S -c 'import sys, fake_gcloud; sys.exit(fake_gcloud.main(sys.argv[1:]))' "$@"
"""
_PYTHON3 = """#!/bin/sh
echo "$@" >>"$HOME/python3_calls"
if [ -e "$FAKE_GCLOUD/no_packages" ]; then echo "looking"; echo "no network" >&2; exit 1; fi
case "$*" in
"-m uv venv"*) mkdir -p "$HOME/bn_vgg_venv/bin" && touch "$HOME/bn_vgg_venv/bin/activate" &&
    ln -sf {python} "$HOME/bn_vgg_venv/bin/python" ;;
esac
"""


class FakeCloud:
    """What tests see of the fake: its orders, its calls, what is in it."""

    def __init__(self, folder):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        (folder / "vm_bin").mkdir()
        (folder / "bucket" / "BUCKET").mkdir(parents=True)
        python = getattr(sys, "_base_executable", sys.executable)
        _script(self.bin / "gcloud", _GCLOUD.format(python=python, folder=Path(__file__).parent))
        _script(folder / "vm_bin" / "hostname", '#!/bin/sh\necho "$FAKE_HOST"\n')
        _script(folder / "vm_bin" / "python3", _PYTHON3.format(python=python))
        (folder / "state.json").write_text('{"queued": {}, "matched": {}}')
        self.order()

    def order(self, *rules, workers=1, states=("WAITING_FOR_RESOURCES", "ACTIVE"), **runs):
        """Says what is to happen from now on.

        Args:
          rules: of (match, what, times): what happens to calls whose arguments hold the text:
            `preempt`, `hang`, or an error's text. A `times` of -1 is for ever.
          workers: of each VM.
          states: that a queued resource goes through, one a look.
          runs: what attempts at a run do, `seed0=["hang", "fail", "silent"]`; of the worker 0,
            unless `seed0_1` names another. After these they do well.
        """
        named = {f"{run}@{worker or 0}": what for run, worker, what in _split(runs)}
        orders = {"rules": rules, "workers": workers, "states": states, "runs": named}
        with _Locked(self.folder):
            self._write("orders.json", orders)
            self._write("state.json", self._read("state.json") | {"matched": {}})

    @property
    def calls(self):
        """The arguments of each call so far."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def count(self, *words):
        """How many calls have all these among their arguments' text."""
        texts = [" ".join(call) for call in self.calls]
        return sum(all(word in text for word in words) for text in texts)

    @property
    def queued(self):
        """Queued resources by name."""
        with _Locked(self.folder):
            return self._read("state.json")["queued"]

    def queue(self, name, state, *arguments):
        """Adds one as made with these arguments, or changes its state."""
        with _Locked(self.folder):
            of_all = self._read("state.json")
            of_all["queued"][name] = {"states": [state], "arguments": arguments}
            self._write("state.json", of_all)

    def bucket(self, path):
        """A path in the bucket."""
        return self.folder / "bucket" / "BUCKET" / path

    def home(self, name, worker=0):
        """A worker's home folder."""
        return self.folder / "vms" / name / f"w{worker}"

    def end(self):
        """Ends every process on every VM."""
        for home in (self.folder / "vms").glob("*"):
            _end_processes(home)

    def _read(self, name):
        return json.loads((self.folder / name).read_text())

    def _write(self, name, content):
        (self.folder / name).write_text(json.dumps(content))


class _Locked:
    """Keeps other calls out."""

    def __init__(self, folder):
        self._path = folder / "lock"

    def __enter__(self):
        self._lock = self._path.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __exit__(self, *_):
        self._lock.close()


def _split(runs):
    for name, what in runs.items():
        run, _, worker = name.partition("_")
        yield run, worker, what


def _script(path, text):
    path.write_text(text)
    path.chmod(0o755)


def _end_processes(vm):
    for pid in vm.rglob("bn_vgg_runs/*/pid"):
        try:
            os.killpg(int(pid.read_text()), 9)
        except (ProcessLookupError, ValueError):
            continue


class RefusedError(Exception):
    """gcloud's errors."""


class Gcloud:
    """One call."""

    def __init__(self, folder, arguments):
        self.folder, self.arguments = folder, arguments
        self.orders = json.loads((folder / "orders.json").read_text())
        self.state = json.loads((folder / "state.json").read_text())

    def flag(self, name, default=None):
        found = [a.partition("=")[2] for a in self.arguments if a.startswith(f"--{name}=")]
        return found[0] if found else default

    def rule(self):
        """What the orders have in store for this call."""
        text = " ".join(self.arguments)
        for match, what, times in self.orders["rules"]:
            seen = self.state["matched"].get(match, 0)
            if match in text and (times < 0 or seen < times):
                self.state["matched"][match] = seen + 1
                return what
        return None

    def preempt(self, name):
        self.state["queued"][name]["states"] = ["SUSPENDED"]
        self.forget(name)

    def forget(self, name):
        import shutil

        _end_processes(self.folder / "vms" / name)
        shutil.rmtree(self.folder / "vms" / name, ignore_errors=True)

    def named(self, name):
        if name not in self.state["queued"]:
            raise RefusedError(f"(gcloud.fake) NOT_FOUND: Resource '{name}' was not found.")
        return self.state["queued"][name]

    def queued_resources(self):
        verb, name = self.arguments[3:5]
        if verb == "list":
            for name, queued in self.state["queued"].items():
                self.arguments = queued["arguments"]
                label = self.flag("labels", "").removeprefix("bn_vgg_sweep=")
                print(f"{name},{queued['states'][0]},{self.flag('accelerator-type', '')},{label}")
        elif verb == "create":
            if name in self.state["queued"]:
                raise RefusedError("(gcloud.fake) ALREADY_EXISTS: Resource already exists")
            states = list(self.orders["states"])
            self.state["queued"][name] = {"states": states, "arguments": self.arguments}
        elif verb == "describe":
            states = self.named(name)["states"]
            print(states[0])
            if len(states) > 1:
                states.pop(0)
        elif verb == "delete":
            assert "--force" in self.arguments
            self.named(name)
            del self.state["queued"][name]
            self.forget(name)

    def homes(self, name):
        """The folders of the workers that the call is about, once the VM is there."""
        states = self.named(name)["states"]
        if states[0] != "ACTIVE":
            raise RefusedError(f'(gcloud.fake) This TPU has terminal state "{states[0]}"')
        workers = range(self.orders["workers"])
        wanted = self.flag("worker", "0")
        for worker in workers if wanted == "all" else [int(wanted)]:
            home = self.folder / "vms" / name / f"w{worker}"
            home.mkdir(parents=True, exist_ok=True)
            yield worker, home

    def ssh(self):
        import subprocess

        name, status = self.arguments[4], 0
        for worker, home in list(self.homes(name)):
            environment = {
                "HOME": str(home),
                "PATH": f"{self.folder / 'vm_bin'}:/usr/bin:/bin",
                "FAKE_GCLOUD": str(self.folder),
                "FAKE_HOST": f"t1v-{name}-w-{worker}",
            }
            shell = ["bash", "-c", self.flag("command")]
            done = subprocess.run(shell, env=environment, cwd=home, stdout=subprocess.PIPE)
            sys.stdout.write(done.stdout.decode())
            status = status or done.returncode
        return status

    def scp(self):
        source, target = self.arguments[4:6]
        if ":" in source:
            name, _, path = source.partition(":")
            ((_, home),) = self.homes(name)
            Path(target).write_bytes((home / path).read_bytes())
            return
        name, _, path = target.partition(":")
        for _, home in self.homes(name):
            (home / path).write_bytes(Path(source).read_bytes())

    def storage(self):
        verb, *urls = self.arguments[1:]
        if verb == "cp":
            target = urls.pop()
        for url in urls:
            path = self.folder / "bucket" / url.removeprefix("gs://")
            if not path.exists():
                raise RefusedError("(gcloud.storage.fake) One or more URLs matched no objects.")
            if verb == "cp":
                (Path(target) / path.name).write_bytes(path.read_bytes())
            else:
                for found in path.iterdir():
                    print(f"{url}{found.name}{'/' if found.is_dir() else ''}")


def main(arguments):
    folder = Path(os.environ["FAKE_GCLOUD"])
    with _Locked(folder):
        with (folder / "calls.jsonl").open("a") as calls:
            calls.write(json.dumps(arguments) + "\n")
        call = Gcloud(folder, arguments)
        try:
            what = call.rule()
            if what == "preempt":
                call.preempt(arguments[4])
            elif what not in (None, "hang"):
                raise RefusedError(what)
            if what != "hang":
                verbs = {"ssh": call.ssh, "scp": call.scp}
                if arguments[0] == "storage":
                    return call.storage()
                if arguments[2] == "tpu-vm":
                    return verbs[arguments[3]]()
                return call.queued_resources()
        except RefusedError as refusal:
            print(f"ERROR: {refusal}", "- '@type': some detail", sep="\n", file=sys.stderr)
            return 1
        finally:
            (folder / "state.json").write_text(json.dumps(call.state))
    time.sleep(600)
    return 1
