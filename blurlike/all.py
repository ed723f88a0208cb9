"Everything, from one import: `from blurlike.all import *` beside `from fastai.text.all import *`."
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipeline,
)

from blurlike.architectures import architecture_table, supported_tasks
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
from blurlike.tasks.causal_lm import *
from blurlike.tasks.corpus import *
from blurlike.tasks.masked_lm import *
from blurlike.tasks.multi_label_classification import *
from blurlike.tasks.question_answering import *
from blurlike.tasks.regression import *
from blurlike.tasks.seq2seq import *
from blurlike.tasks.sequence_classification import *
from blurlike.tasks.token_classification import *
