"""What uses bn_vgg to find things out; bn_vgg never imports from here."""
