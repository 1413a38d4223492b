"""Which networks of torchvision and timm can be cut, how exactly, how fast?"""
