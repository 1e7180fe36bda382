"""Networks beside the U-Net, and what a network is made of."""
