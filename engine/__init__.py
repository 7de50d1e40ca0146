"""The inference engine: claims batches, plans them whole, steps, commits outcomes."""

import os

# PyTorch's OpenMP threads wait for each other spinning. On a core that they share with another
# process, the server for example, a long spin keeps from work the very thread that is waited for.
# OpenMP reads this when it is loaded, hence before anything here imports torch.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
