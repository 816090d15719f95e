"""What `fastpure` is compared with, written for the comparison: same network, same weights, same steps."""
