"How fast is blurlike, beside what else one would use? `make bench`, or `python -m benchmarks.speed`"
