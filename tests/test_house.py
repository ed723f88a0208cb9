"Modules import only modules below them, private names of libraries stay in core/compat, other learners are unaffected."
import ast
import json
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from fastai.text.all import load_learner

import blurlike
from blurlike.all import Task, all_tasks

ROOT = Path(blurlike.__file__).parent
# From top to bottom: folders, and modules that are in no folder
STOREYS = ['__init__ __main__ _modidx all cli demo scale clean', 'ship', 'train',
           'predict generate embed explain calibrate architectures',
           'data', 'tasks', 'text', 'show', 'core']
LEVELS = {room: i for i,rooms in enumerate(reversed(STOREYS)) for room in rooms.split()}
LIBRARIES = {'fastai', 'transformers', 'torch', 'tokenizers', 'huggingface_hub', 'datasets'}
COMPAT = 'core.compat'


def modules():
    "The syntax tree of each module of blurlike, by its name inside the package"
    paths = {'.'.join(p.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): p
             for p in sorted(ROOT.rglob('*.py'))}
    return {name: ast.parse(p.read_text(encoding='utf-8')) for name,p in paths.items()}


MODULES = modules()
PACKAGES = {'.'.join(p.parent.relative_to(ROOT).parts) for p in ROOT.rglob('*/__init__.py')}


def imports(name, tree):
    "The modules of blurlike that a module imports anywhere, and the line of each import"
    package = ['blurlike', *(name.split('.') if name in PACKAGES else name.split('.')[:-1])]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): targets = [o.name for o in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package)+1-node.level] if node.level else []
            targets = ['.'.join([*above, *filter(None, [node.module]), o.name]) for o in node.names]
        else: continue
        for o in targets:
            top,*rest = o.split('.')
            while rest and '.'.join(rest) not in MODULES: rest.pop() # a name in a module
            if top=='blurlike' and rest: yield '.'.join(rest), node.lineno


ARROWS = {(name, to): line for name,tree in MODULES.items() if name!='_modidx' for to,line in imports(name, tree)
          if to!=name}


def level(module): return LEVELS[module.split('.')[0]]


# ---- imports

def test_every_module_has_a_storey():
    assert {o.split('.')[0] for o in MODULES} <= {*LEVELS}, 'add the new room to STOREYS'


def test_imports_point_down():
    up = [f'{a}:{line} imports {b}' for (a, b),line in ARROWS.items() if level(b) > level(a)]
    assert not up, '\n'.join(up)


@pytest.mark.parametrize('rooms', STOREYS)
def test_modules_of_a_storey_have_no_cycle(rooms):
    mine = {o for o in MODULES if o.split('.')[0] in rooms.split()}
    try: TopologicalSorter({a: {b for b in mine if (a, b) in ARROWS} for a in mine}).prepare()
    except CycleError as e: pytest.fail(' imports '.join(reversed(e.args[1])))


def test_imports_are_found():
    tree = ast.parse("""
import blurlike, blurlike.cli
from blurlike import demo
from . import save
def f():
    from ..data import loader as l
    from ..data.block import HFTextBlock
""")
    assert [o for o,_ in sorted(imports('ship.hub', tree))] == ['cli', 'data.block', 'data.loader', 'demo', 'ship.save']


IMPORT_EACH = """
import os, sys, traceback
import datasets, fastai.text.all, sklearn.metrics, transformers # once for all, as they take most of the time
assert not [o for o in sys.modules if o.startswith('blurlike')]
for name in sys.argv[1:]:
    if not os.fork():
        try: __import__(f'blurlike.{name}')
        except BaseException:
            print(name, *traceback.format_exc().splitlines()[-1:], flush=True)
            os._exit(1)
        os._exit(0)
    os.wait()
"""


def test_each_module_can_be_imported_first():
    names = [o for o in MODULES if o not in ('__init__', '__main__')] # the first is imported with any other
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', IMPORT_EACH, *names], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, ''), run.stderr


# ---- private names of other libraries

def is_private(name):
    "Whether a name is private; `_orig_...` is public, since fastcore's `patch` keeps what it replaces under it"
    return name.startswith('_') and not name.endswith('_') and not name.startswith(('__', '_orig_'))


def own_names():
    "The private names that blurlike defines: functions, classes, variables, and attributes of `self` or of its classes"
    classes = {n.name for tree in MODULES.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    for tree in MODULES.values():
        for n in ast.walk(tree):
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)): yield n.name
            elif isinstance(n, ast.arg): yield n.arg
            elif isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store): yield n.id
            elif isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and isinstance(n.value, ast.Name):
                if n.value.id in {'self', 'cls', *classes}: yield n.attr


# those of named tuples are public
OWN = {o for o in own_names() if is_private(o)} | {'_replace', '_asdict', '_fields', '_make'}


def private_names(tree):
    "The private names of other libraries that a module imports, reads, sets or passes, and the line of each"
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and not n.level and n.module.split('.')[0] in LIBRARIES:
            for o in [*n.module.split('.'), *(o.name for o in n.names)]:
                if is_private(o): yield o,n.lineno
        elif isinstance(n, ast.Import):
            for o in n.names:
                if o.name.split('.')[0] in LIBRARIES:
                    yield from ((part, n.lineno) for part in o.name.split('.') if is_private(part))
        elif isinstance(n, ast.Attribute) and is_private(n.attr):
            of_base = isinstance(n.value, ast.Call) and isinstance(n.value.func, ast.Name) and n.value.func.id=='super'
            if of_base or n.attr not in OWN: yield n.attr,n.lineno
        elif isinstance(n, ast.Call):
            names = [o.arg for o in n.keywords if o.arg]
            if isinstance(n.func, ast.Name) and n.func.id in ('getattr', 'hasattr', 'setattr', 'delattr'):
                names += [o.value for o in n.args[1:2] if isinstance(o, ast.Constant)]
            yield from ((o, n.lineno) for o in names if is_private(o) and o not in OWN)


def test_private_names_of_other_libraries_are_used_in_compat_alone():
    found = [f'{name}:{line} {o}' for name,tree in MODULES.items() if name not in (COMPAT, '_modidx')
             for o,line in sorted(set(private_names(tree)))]
    assert not found, '\n'.join(found)


def test_modules_import_public_names_of_each_other():
    found = [f'{name}:{n.lineno} {o.name}' for name,tree in MODULES.items() for n in ast.walk(tree)
             if isinstance(n, ast.ImportFrom) and n.level for o in n.names if is_private(o.name)]
    assert not found, '\n'.join(found)


def test_private_names_are_found():
    code = '''
from transformers.utils._hidden import f
from torch import _C
import torch._inductor.config as config
def use(self, m, tokenizer):
    self._of_someone, m._of_someone_else, super()._draw(), getattr(m, '_buffer'), f(_arg=1)
    m._orig_show, m._replace(a=1), m.__dict__, m._repr_html_()
'''
    assert sorted(o for o,_ in private_names(ast.parse(code))) == ['_C', '_arg', '_buffer', '_draw', '_hidden',
                                                                   '_inductor', '_of_someone', '_of_someone_else']


# ---- tasks

def concrete_tasks():
    "The names of the classes of tasks, without `Task` itself"
    def below(cls): return {o for c in cls.__subclasses__() for o in (c, *below(c))}
    return {o.__name__ for o in below(Task) if o.__module__.startswith('blurlike.tasks.')}


def asks_for_a_task(node, names, classes):
    "Whether an expression compares a task or its name, or is `isinstance` with the class of a task"
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        strings = {o.value for side in sides for o in ast.walk(side) if isinstance(o, ast.Constant)
                   and isinstance(o.value, str)}
        equals = any(isinstance(o, (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)) for o in node.ops)
        none = any(isinstance(o, ast.Constant) and o.value is None for o in sides)
        return bool(strings & names) or equals and not none and any(is_task(o) for o in sides)
    if isinstance(node, ast.Match): return is_task(node.subject)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            and node.func.id in ('isinstance', 'issubclass')): return False
    return bool({o.id if isinstance(o, ast.Name) else o.attr for o in ast.walk(node.args[1])
                 if isinstance(o, (ast.Name, ast.Attribute))} & classes)


def is_task(node):
    "Whether an expression is called `task`, or is `task.name`"
    if isinstance(node, ast.Attribute) and node.attr=='name': node = node.value
    return 'task' in (getattr(node, 'id', None), getattr(node, 'attr', None))


def test_only_tasks_know_which_task_it_is():
    names,classes = set(all_tasks()),concrete_tasks()
    found = [f'{name}:{n.lineno} {ast.unparse(n)[:100]}' for name,tree in MODULES.items()
             if not name.startswith(('tasks', '_modidx'))
             for n in ast.walk(tree) if asks_for_a_task(n, names, classes)]
    assert not found, '\n'.join(found)


@pytest.mark.parametrize(('code', 'asks'), [
    ("task.name == 'causal-lm'", True), ("name in ('causal-lm', 'masked-lm')", True), ('block.task == other', True),
    ('isinstance(block.task, CausalLM)', True),
    ('self.task.name != name', True), ('isinstance(o, (int, tasks.CausalLM))', True),
    ('match task.name:\n  case _: pass', True),
    ('task is None', False), ('task in all_tasks()', False), ('isinstance(task, Task)', False),
    ('isinstance(task, str)', False), ("o == 'max_length'", False)])
def test_questions_about_tasks_are_found(code, asks):
    assert any(asks_for_a_task(n, set(all_tasks()), concrete_tasks()) for n in ast.walk(ast.parse(code))) == asks


# ---- fastai for others

EXTENDED = [('fastai.data.core', 'DataLoaders', 'test_dl'), ('fastai.learner', 'Learner', 'show_results'),
            ('fastai.learner', 'Learner', 'all_batches'), ('fastai.learner', 'Learner', 'fit'),
            ('fastai.interpret', 'Interpretation', '__getitem__'),
            ('fastai.interpret', 'ClassificationInterpretation', 'confusion_matrix'),
            ('fastai.interpret', 'ClassificationInterpretation', 'print_classification_report')]
TABULAR = """
import contextlib, importlib, io, json, sys
import IPython.display
import pandas as pd
from fastai.tabular.all import *

IPython.display.display = lambda o: print(o.data) # tables as HTML

mode,extended = sys.argv[1],json.loads(sys.argv[2])
if mode != 'alone':
    import blurlike.all
methods = [(getattr(importlib.import_module(m), c), f) for m,c,f in extended]
if mode != 'alone':
    for cls,name in methods:
        assert getattr(cls, name).__module__.startswith('blurlike'), f'take {cls.__name__}.{name} out of EXTENDED'
        for _ in range(2 if mode=='reloaded' else 0): importlib.reload(sys.modules[getattr(cls, name).__module__])
        original = getattr(cls, '_orig_' + name) # fastcore's record
        assert original.__module__.startswith('fastai'), f'{cls.__name__}._orig_{name} is not the method of fastai'

numbers = [i%7/7 for i in range(60)]
df = pd.DataFrame(dict(a=numbers, b=list('xyz')*20, y=['yes' if o > 0.5 else 'no' for o in numbers]))
set_seed(0, reproducible=True)
dls = TabularDataLoaders.from_df(df, procs=[Categorify, Normalize], cat_names='b', cont_names='a', y_names='y',
                                 valid_idx=range(40, 60), bs=10, device='cpu')
learn = tabular_learner(dls, layers=[8], metrics=accuracy)
printed = io.StringIO()
with contextlib.redirect_stdout(printed), learn.no_bar(), learn.no_logging():
    dls.show_batch(max_n=3)
    learn.fit(1, 1e-2)
    learn.show_results(max_n=3, shuffle=False)
    interp = ClassificationInterpretation.from_learner(learn)
    interp.print_classification_report()
    interp.plot_top_losses(2)
    res = dict(values=list(learn.validate()), matrix=interp.confusion_matrix().tolist(),
               row=learn.predict(df.iloc[0])[2].tolist(), new=learn.get_preds(dl=dls.test_dl(df[:5]))[0].tolist(),
               labeled=list(learn.validate(dl=dls.test_dl(df[:9], with_labels=True))))
print(json.dumps([res, printed.getvalue()], default=list))
"""


def tabular(mode):
    "What a tabular learner predicts and shows in another process: alone, with blurlike, or with its modules reloaded"
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', TABULAR, mode, json.dumps(EXTENDED)],
                         capture_output=True, text=True, env=dict(os.environ, MPLBACKEND='agg'))
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def alone(): return tabular('alone')


@pytest.mark.parametrize('mode', ['imported', 'reloaded'])
def test_a_tabular_learner_is_unaffected(mode, alone):
    assert len(alone[0]['new']) == 5
    assert alone[1].count('<table') == 2
    assert 'precision' in alone[1]
    assert tabular(mode) == alone


# ---- exported learners

EXPORTED = """
import sys
from fastai.text.all import load_learner
assert not [o for o in sys.modules if o.startswith('blurlike')]
learn = load_learner(sys.argv[1])
methods = 'hf_predict', 'show_results', 'save_pretrained', 'push_to_hub', 'export_onnx', 'model_card'
missing = [o for o in methods if not hasattr(learn, o)]
assert not missing, missing
assert type(learn).show_results.__module__.startswith('blurlike')
assert learn.hf_predict('the film')['label'] in ('bad', 'good')
import pandas as pd
dl = learn.dls.test_dl(pd.DataFrame(dict(text=['the film', 'the plot'], label=['good', 'bad'])), with_labels=True)
with learn.no_bar(): learn.show_results(dl=dl)
assert '# ' in learn.model_card(license='mit').text
learn.save_pretrained(sys.argv[2])
"""


def test_an_exported_learner_has_every_method_of_blurlike(learn, tmp_path):
    learn.path = tmp_path
    learn.export('learner.pkl')
    assert load_learner(tmp_path/'learner.pkl').hf_predict('the film')
    args = [sys.executable, '-W', 'ignore', '-c', EXPORTED, str(tmp_path/'learner.pkl'), str(tmp_path/'model')]
    run = subprocess.run(args, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert 'prediction' in run.stdout
    assert (tmp_path/'model'/'blurlike.json').exists()
    assert (tmp_path/'model'/'tokenizer.json').exists()


# ---- docstrings

def test_a_docstring_is_one_string():
    "A second string below a docstring is a statement of its own, which no documentation shows"
    def is_string(o): return isinstance(o, ast.Expr) and isinstance(getattr(o.value, 'value', None), str)
    broken = [f'{name}:{n.lineno}' for name,tree in MODULES.items() for n in ast.walk(tree)
              if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Module)) and sum(map(is_string, n.body[:2]))==2]
    assert not broken
