"Compare the speed of blurlike with the alternatives: `make bench` or `python -m benchmarks.speed`"
