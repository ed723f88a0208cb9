"Run the notebooks in a Jupyter kernel and keep the outputs that README.md and the site show"
import re
import sys
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from fastcore.script import call_parse
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent

def notebooks(
    root:Path=ROOT, # The project
) -> list: # Paths
    "Return the notebooks in reading order: by file name, which starts with a number; the index comes first"
    paths = [o for o in (root/'nbs').rglob('*.ipynb') if not any(p[0] in '._' for p in o.relative_to(root).parts)]
    return sorted(paths, key=lambda o: (o.name != 'index.ipynb', o.name))

def is_noise(
    output, # An output of a cell
) -> bool:
    "Return whether `output` is a widget, which needs a running kernel, or HTML or a stream without text or images"
    if output.output_type=='stream': return not output.text.strip()
    data = output.get('data', {})
    if 'application/vnd.jupyter.widget-view+json' in data: return True
    if 'text/html' not in data: return False
    soup = BeautifulSoup(data['text/html'], 'html.parser')
    for o in soup(['style', 'script', 'progress']): o.decompose()
    return not soup.get_text(strip=True) and not soup(['img', 'svg'])

# Bars, and warnings that `blurlike.all` hides, in notebooks that import fastai or transformers before it
_UNSTABLE = re.compile(r'^.*(\d+%\||`torch\.jit\.script` is deprecated).*\n( +warnings\.warn.*\n)?|'
                       r'^.*IProgress not found.*\n.*\n', re.MULTILINE)

def short_paths(
    text:str, # Any text
) -> str:
    "Return `text` with the paths of installed files relative to their packages"
    return re.sub(r"""[^\s'"]*/site-packages/""", '', text)

def stable_text(
    text:str, # Standard error
) -> str:
    "Return `text` without progress bars and paths of this machine"
    text = short_paths(_UNSTABLE.sub('', text))
    return re.sub(r'/tmp/ipykernel_\d+/\d+\.py:\d+: ', '', text)

def keep_stable(
    cell, # A code cell
):
    "Drop the outputs of `cell` that are noise, and everything that changes with each run"
    for o in cell.outputs:
        if o.get('name')=='stderr': o.text = stable_text(o.text)
        if 'text/plain' in o.get('data', {}): o.data['text/plain'] = short_paths(o.data['text/plain'])
    cell.outputs = [o for o in cell.outputs if not is_noise(o)]
    cell.execution_count = None
    for o in cell.outputs:
        if 'execution_count' in o: o.execution_count = None
        if 'metadata' in o: o.metadata = {}

def run(
    path:Path, # A notebook
):
    "Execute the notebook at `path` and write it back"
    nb = nbformat.read(path, as_version=4)
    resources = {'metadata': {'path': str(path.parent)}}
    NotebookClient(nb, timeout=1200, kernel_name='python3', resources=resources, record_timing=False,
                   coalesce_streams=True).execute()
    for o in nb.cells:
        if o.cell_type=='code': keep_stable(o)
    nb.metadata = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    nbformat.write(nb, path)

@call_parse(pos=['pattern'])
def main(
    pattern:str='', # Run only notebooks whose path matches this regular expression
):
    "Run the notebooks in reading order and keep their outputs"
    for o in notebooks():
        if not re.search(pattern, str(o.relative_to(ROOT))): continue
        print(o.relative_to(ROOT), file=sys.stderr)
        run(o)
