"The names that a notebook needs: `from blurlike.all import *`, then `from fastai.text.all import *`"
import warnings as _warnings

with _warnings.catch_warnings(): # from other libraries' code, which their users cannot change
    _warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)
    _warnings.filterwarnings('ignore', 'IProgress not found') # tqdm falls back to text
    import fastai.layers as _
    import tqdm.auto as _

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import blurlike.ship.card # learn.model_card
import blurlike.ship.save # learn.save_pretrained
import blurlike.ship.hub # learn.push_to_hub
import blurlike.ship.onnx # learn.export_onnx
import blurlike.calibrate # learn.calibrate
import blurlike.predict # learn.hf_predict
import blurlike.generate # learn.hf_generate
import blurlike.explain # learn.explain
from blurlike.architectures import architecture_table, supported_tasks
from blurlike.data.block import HFTextBlock
from blurlike.train.callback import HFCallback, HFLoss
from blurlike.data.dataloaders import HFTextDataLoaders
from blurlike.embed import HFEmbedder, HFIndex # and learn.hf_embed
from blurlike.core.inputs import HFInputs, padding_share
from blurlike.clean import HFTextCleaner, find_label_issues
from blurlike.train.cross_validation import CrossValPreds, cross_val_preds
import blurlike.train.distributed # learn.distrib_ctx
from blurlike.train.learner import HFMixedPrecision, build_model, class_weights, hf_adamw, hf_learner
from blurlike.ship.checkpoint import HFCheckpoint
from blurlike.ship.load import load_hf_learner
from blurlike.data.loader import HFDataLoader
from blurlike.train.memory import find_batch_size
from blurlike.core.objects import (
    HFObjects,
    forward_args,
    get_hf_objects,
    load_hf_config,
    load_hf_model,
    load_hf_tokenizer,
    model_skeleton,
    position_limit,
    set_pad_token,
)
from blurlike.core.precision import best_precision
from blurlike.data.samples import minilm_checkpoint, load_movie_reviews, smollm2_checkpoint
from blurlike.ship.serve import gradio_page, serve # and learn.push_to_space
from blurlike.show import SampleTable, plot_top_losses
from blurlike.train.search import find_hyperparameters
from blurlike.train.splitter import head_params, hf_splitter, layer_params
from blurlike.train.tracking import HFTracker, hyperparameters
from blurlike.tasks.base import Task, TokenCrossEntropy, all_tasks, get_block, get_task, infer_task, task_class
from blurlike.tasks.labels import get_vocab, label_names
from blurlike.tasks.causal_lm import CausalLM
from blurlike.tasks.corpus import TokenAccuracy, TokenPerplexity
from blurlike.tasks.masked_lm import (
    BertMasking,
    MaskedLM,
    Masking,
    SpanMasking,
    WholeWordMasking,
    all_maskings,
    get_masking,
)
from blurlike.tasks.multi_label_classification import LabelThresholds, MultiLabelClassification
from blurlike.tasks.multiple_choice import ChoiceBlock, MultipleChoice
from blurlike.tasks.question_answering import (
    NO_ANSWER,
    Answer,
    AnswerBlock,
    AnswerLoss,
    AnswerMetric,
    QuestionAnswering,
    answer_exact,
    answer_f1,
    exact_match,
    normalize_answer,
    squad_f1,
)
from blurlike.tasks.regression import Regression, pearson, spearman
from blurlike.tasks.seq2seq import (
    ChrF,
    ExactMatch,
    GenerationMetric,
    Rouge,
    SacreBLEU,
    Seq2Seq,
    Summarization,
    TextTargetBlock,
    Translation,
)
from blurlike.tasks.sequence_classification import SequenceClassification
from blurlike.tasks.token_classification import (
    LabelScheme,
    TokenClassification,
    WordLabels,
    WordLabelsBlock,
    WordMetric,
    entity_f1,
    entity_precision,
    entity_recall,
    find_scheme,
    label_order,
    word_accuracy,
)
from blurlike.text.lengths import plot_token_lengths, token_lengths
from blurlike.text.rows import CellsReader


def pipeline(*args, **kwargs):
    "Call transformers' `pipeline`, which is imported only when needed, because the import takes seconds"
    from transformers import pipeline
    return pipeline(*args, **kwargs)
