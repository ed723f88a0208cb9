"Importing blurlike changes no global state and hides no name of fastai."
import inspect
import json
import subprocess
import sys

import fastai.text.all as fastai_all
import pytest

import blurlike.all as ours

STATE = """
import json, logging, os, sys, warnings
def state():
    import torch
    return dict(env=dict(os.environ), filters=[str(o) for o in warnings.filters],
                grad=torch.is_grad_enabled(), threads=torch.get_num_threads(),
                levels={n: logging.getLogger(n).level for n in ('', 'transformers', 'datasets', 'torch', 'fastai')},
                handlers=len(logging.getLogger().handlers))
import fastai.text.all, transformers, datasets
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
before = state()
import blurlike.all
json.dump([before, state()], sys.stdout)
"""


def test_importing_sets_nothing():
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', STATE], capture_output=True, text=True, check=True)
    before,after = json.loads(run.stdout)
    assert before == after


def test_no_name_hides_one_of_fastais():
    mine = {n for n in dir(ours) if not n.startswith('_')
            and (getattr(getattr(ours, n), '__module__', None) or '').startswith('blurlike')}
    hidden = {n for n in mine if getattr(fastai_all, n, getattr(ours, n)) is not getattr(ours, n)}
    assert not hidden


def test_modules_about_hugging_face_alone_do_not_import_fastai():
    code = 'import sys, blurlike.core.objects, blurlike.train.splitter; sys.exit("fastai" in sys.modules)'
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


def test_the_learner_has_the_methods_of_fastai():
    code = """
from blurlike.train.learner import Learner
Learner.fit_one_cycle, Learner.fine_tune, Learner.lr_find, Learner.summary
"""
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


def test_blurlike_all_has_the_names_of_the_walkthrough():
    names = '''HFTextDataLoaders hf_learner get_hf_objects HFTextBlock HFCallback HFLoss hf_splitter HFDataLoader
               HFInputs token_lengths plot_token_lengths AutoModelForSequenceClassification AutoConfig AutoTokenizer
               pipeline'''.split()
    assert [n for n in names if not hasattr(ours, n)] == []


def test_slow_imports_are_delayed():
    slow = ['transformers.modeling_utils', 'transformers.pipelines', 'transformers.generation.utils', 'datasets',
            'gradio', 'onnxruntime', 'onnx', 'torchvision', 'accelerate', 'peft', 'fastai.distributed', 'cleanlab']
    code = f"""
import sys
import fastai.text.all
there = set(sys.modules)
import blurlike.all
print([o for o in {slow!r} if o in sys.modules and o not in there])
"""
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert run.stdout.strip()=='[]', run.stderr


NOTEBOOK = """
import sys
from types import SimpleNamespace
sys.modules['ipywidgets'] = None
kernel = SimpleNamespace(config={'IPKernelApp': {}})
import IPython
IPython.get_ipython = lambda: kernel # as in a notebook without ipywidgets
"""


@pytest.mark.parametrize('first', ['', NOTEBOOK], ids=['script', 'notebook'])
def test_importing_prints_nothing(first):
    run = subprocess.run([sys.executable, '-c', first + 'from blurlike.all import *'], capture_output=True, text=True,
                         check=True)
    assert run.stdout + run.stderr == ''


def test_a_star_import_brings_no_modules_of_other_libraries():
    names = {}
    exec('from blurlike.all import *', names)
    modules = {k for k,v in names.items() if inspect.ismodule(v)}
    assert modules <= {'blurlike', '__builtins__'}
