"Train, inspect, predict with and ship any Hugging Face text model without leaving fastai"
from importlib.metadata import PackageNotFoundError, version

try: __version__ = version('blurlike')
except PackageNotFoundError: __version__ = 'unknown' # run from a checkout that is not installed
