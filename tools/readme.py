"Write README.md from nbs/index.ipynb, with the outputs that are committed there"
import re
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from fastcore.nbio import nb2str
from fastcore.script import call_parse
from nbconvert import MarkdownExporter
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, filter_stream_, hide_, hide_line, strip_ansi
from notebooks import ROOT, is_noise
from traitlets.config import Config

IMAGES = 'nbs/images'
NOTICE = '<!-- Generated from nbs/index.ipynb by tools/readme.py: edit the notebook, not this file. -->\n\n'
_bold = ['b', 'strong']
_first = ['text/markdown', 'text/html', 'image/svg+xml', 'image/png', 'image/jpeg', 'text/plain']

def gfm_cell(
    cell, # A `th` or `td`
) -> str:
    "Return the text of `cell` as Markdown, in bold if the cell contains bold text"
    text = re.sub(r'([\\`*_|<\[\]~$])', r'\\\1', ' '.join(cell.get_text().split()))
    return f'**{text}**' if text and cell.find(_bold) else text

def gfm_table(
    html:str, # An HTML output
) -> str|None: # None unless it is one table of plain and bold text
    "Convert an HTML table to GitHub's Markdown"
    tables = BeautifulSoup(html, 'html.parser')('table')
    rows = [o(['th', 'td']) for o in tables[0]('tr')] if len(tables)==1 else []
    # pandas names the index in a second header row, which is empty but for that name
    while len(rows)>1 and all(o.name=='th' for o in rows[1]): 
        for o,name in zip(rows[0], rows.pop(1), strict=True): o.append(name.get_text())
    plain = all(o.name in _bold for row in rows for cell in row for o in cell(True))
    if not plain or len({*map(len, rows)})!=1: return None
    head,*body = [[*map(gfm_cell, o)] for o in rows]
    return '\n'.join('| ' + ' | '.join(o) + ' |' for o in (head, ['---']*len(head), *body))

def tidy(
    cell, # A notebook cell, changed in place
):
    "Remove an empty `cell` and outputs without content, and convert tables to Markdown"
    if not cell.source.strip(): del cell['source']
    if 'outputs' in cell: cell['outputs'] = [o for o in cell.outputs if not is_noise(o)]
    for o in cell.get('outputs', []):
        if table := gfm_table(o.get('data', {}).get('text/html', '')): o.data['text/markdown'] = table
        elif 'text/html' in o.get('data', {}): o.data.pop('text/markdown', None)

def to_markdown(
    path:Path, # A notebook
    images:str, # The folder of the images in its outputs
    *procs # More processors as in `nbdev.process`
) -> tuple: # The Markdown, and a dict of the images' paths and bytes
    "Convert a notebook to Markdown as nbdev would show it"
    nb = NBProcessor(path, [strip_ansi, hide_line, filter_stream_, clean_magics, hide_, *procs, tidy])
    nb.process()
    nb.nb.metadata.language_info = {'name': 'python'}
    exporter = MarkdownExporter(config=Config({'NbConvertBase': {'display_data_priority': _first}}))
    resources = {'unique_key': path.stem, 'output_files_dir': images}
    text,resources = exporter.from_notebook_node(nbformat.reads(nb2str(nb.nb), as_version=4), resources)
    text = re.sub(r'[ \t]+$', '', text, flags=re.MULTILINE)
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', resources['outputs']

@call_parse
def main(
    root:Path=ROOT, # The project
):
    "Write README.md from nbs/index.ipynb, with the outputs that are committed there"
    root = Path(root)
    def from_root(m): return f'](nbs/{m[1]}' if (root/'nbs'/m[1]).exists() else m[0]
    text,images = to_markdown(root/'nbs'/'index.ipynb', IMAGES)
    for o in (root/IMAGES).glob('index_*'): o.unlink()
    for k,v in images.items(): (root/k).write_bytes(v)
    text = re.sub(r'\]\(([^)#]+)', from_root, text)
    (root/'README.md').write_text(NOTICE + text, encoding='utf-8')
