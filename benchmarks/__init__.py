"""What a checkpoint costs a Flower server, measured against a raw write and against other libraries.

``python -m benchmarks`` (``make bench``) runs everything. `arrays` is the data, `flower_loop` the rounds, `contenders`
who saves them, `cases` what is measured, `worker` one measurement in a process of its own, `instruments` the clocks
and scales, `targets` and `report` what comes of it.
"""
