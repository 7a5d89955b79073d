"""The mean of a hundred million normal numbers, the same to the bit wherever it is computed."""

import ebbtide as eb
import ebbtide.array as xp

x = xp.random.default_rng(7).normal(size=(10_000, 10_000), chunks=(500, 10_000))
with eb.Cluster():
    mean = x.mean().compute(progress=True)
print(f"mean {mean:.17g}  bits {mean.hex()}")
