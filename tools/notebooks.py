"Run the notebooks in a Jupyter kernel and keep their outputs, which the README and the site show."
import re
import sys
from pathlib import Path

import nbformat
from fastcore.script import call_parse
from nbclient import NotebookClient

root = Path(__file__).resolve().parent.parent


def is_noise(output):
    "Whether `output` is a line of logging, a widget that needs a live kernel, or an emptied progress bar"
    if output.output_type=='stream': return output.name=='stderr'
    data = output.get('data', {})
    return 'application/vnd.jupyter.widget-view+json' in data or data.get('text/html', None)==''


def keep_stable(cell):
    "Drop what says nothing to a reader: logging, the bars of finished work, numbers of execution"
    cell.outputs = [o for o in cell.outputs if not is_noise(o)]
    cell.execution_count = None
    for o in cell.outputs:
        if 'execution_count' in o: o.execution_count = None
        o.metadata = {} if 'metadata' in o else o.get('metadata', {})
        if o.output_type=='stream': o.pop('metadata', None)


def run(path):
    "Execute the notebook at `path` and write it back"
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=1200, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}).execute()
    for cell in nb.cells:
        if cell.cell_type=='code': keep_stable(cell)
    nb.metadata = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    nbformat.write(nb, path)


@call_parse
def main(
    pattern:str='', # Only notebooks whose path matches this regular expression
):
    "Run the notebooks in order and keep their outputs"
    for path in sorted((root/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in path.parts or not re.search(pattern, str(path.relative_to(root))): continue
        print(path.relative_to(root), file=sys.stderr)
        run(path)
