"""Published networks: what is known of each, fetching them when asked, and checking that they stay what they were.

>>> fp.load_denoiser("hf:google/ddpm-cifar10-32")         # "hf:" is asking: fetched once, then taken from the cache
>>> fp.load_denoiser("guided-diffusion-imagenet-256")     # after `fastpure download guided-diffusion-imagenet-256`
"""

from .cards import CARDS, Card
from .places import Place, cache_folder, download, find, hub_remedy, is_here
from .records import RECORD

__all__ = ["CARDS", "RECORD", "Card", "Place", "cache_folder", "download", "find", "hub_remedy", "is_here"]
