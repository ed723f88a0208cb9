"Everything, from one import: `from blurlike.all import *` beside `from fastai.text.all import *`."
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from blurlike.block import *
from blurlike.callback import *
from blurlike.dataloaders import *
from blurlike.export import *
from blurlike.inputs import *
from blurlike.learner import *
from blurlike.loader import *
from blurlike.objects import *
from blurlike.predict import *
from blurlike.samples import *
from blurlike.show import *
from blurlike.splitter import *
from blurlike.tasks.base import *
from blurlike.tasks.sequence_classification import *
