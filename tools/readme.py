"Write README.md from nbs/index.ipynb, with the outputs that are committed there"
import json
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from fastcore.nbio import nb2dict, read_nb
from fastcore.script import call_parse
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
_kept, _bold = ['colspan', 'rowspan', 'style'], ['b', 'strong']
HIDE_INPUT, IMAGES = 'hide-input', 'nbs/images'
NOTICE = '<!-- Generated from nbs/index.ipynb by tools/readme.py: edit the notebook, not this file. -->'
_ansi = re.compile(r'\x1b\[[0-?]*[ -/]*[@-~]')
_bar = re.compile(r'\d+%\|.*\|\s*[\d.]+\w*/|^\s*\|[█-]+\|')
_magic = re.compile(r'^\s*%(load_ext|reload_ext|autoreload|matplotlib|config)\b.*\n?', re.MULTILINE)
_hidden_line = re.compile(r'^.*#\|\s*hide_line\s*$\n?', re.MULTILINE)
# Code comes first where it starts first: `layers[0](x)` is not a link
_link = re.compile(r'```.*?```|(!?)\[([^\]]*)\]\(([^)\s]+)\)|`[^`\n]*`', re.DOTALL)

def tidy_stream(
    text:str, # What a cell printed
    drop:str='', # The words of a `filter_stream` directive
) -> str:
    "`text` as a terminal would leave it, without colors, finished progress bars and the lines that have a word of `drop`"
    lines = [o.rstrip('\r').rpartition('\r')[2] for o in _ansi.sub('', text).split('\n')]
    unwanted = [_bar.search, *(re.compile(o).search for o in drop.split())]
    return '\n'.join(o for o in lines if not any(f(o) for f in unwanted))

def inline_styles(
    soup:BeautifulSoup, # An HTML output, changed in place
):
    "Put what a pandas `Styler` says of single cells on the cells themselves"
    for sheet in soup('style'):
        for names,rules in re.findall(r'([^{}]+){([^{}]*)}', sheet.get_text()):
            for cell in filter(None, (soup.find(id=o.strip()[1:]) for o in names.split(',') if o.strip().startswith('#'))):
                cell['style'] = f"{cell.get('style', '')} {' '.join(rules.split())}".strip()

def tidy_html(
    html:str, # An HTML output
) -> str: # Empty if nothing is left to see
    "`html` without styles, scripts and progress bars"
    soup = BeautifulSoup(html, 'html.parser')
    inline_styles(soup)
    for o in soup(['style', 'script']): o.decompose()
    for o in soup('progress'): (o.find_parent('div') or o).decompose()
    for o in soup(['table', 'tr']): o.attrs = {}
    for o in soup(['th', 'td']): o.attrs = {k: v for k,v in o.attrs.items() if k in _kept}
    return str(soup).strip() if soup.get_text(strip=True) or soup.find(['img', 'svg']) else ''

def tidy_output(
    out:dict, # An output of a code cell
    drop:str='', # The words of a `filter_stream` directive
) -> dict|None: # None if nothing is left to see
    "`out` as a reader should see it, in one format instead of several"
    if out.output_type == 'stream':
        out['text'] = tidy_stream(out.text, drop)
        return out if out.text.strip() else None
    if out.output_type == 'error':
        out['traceback'] = [_ansi.sub('', o) for o in out.traceback]
        return out
    data = out.data
    if 'application/vnd.jupyter.widget-view+json' in data: return None
    if 'text/html' in data: data['text/html'] = tidy_html(data['text/html'])
    formats = 'text/html', 'text/markdown', 'image/svg+xml', 'image/png', 'image/jpeg', 'text/plain'
    best = next((o for o in formats if o in data), None)
    out['data'] = {best: data[best]} if best and data[best].strip() else {}
    out['metadata'] = {}
    return out if out.data else None

def tidy_cell(
    cell, # A cell as `read_nb` gives it
) -> bool: # Whether there is something to show
    "Follow and remove the directives of `cell`, in place"
    has = cell.directives
    if 'hide' in has or 'default_exp' in has or has.get('include') == 'false' or cell.cell_type == 'raw': return False
    if cell.cell_type != 'code': return bool(cell.source.strip())
    cell.remove_directives()
    cell.set_source(_magic.sub('', _hidden_line.sub('', cell.source)).strip('\n'))
    if 'hide_output' in has or has.get('output') == 'false': cell['outputs'] = []
    outputs = [tidy_output(o, has.get('filter_stream', '')) for o in cell.outputs]
    cell['outputs'] = [o for o in outputs if o]
    hide_input = 'hide_input' in has or has.get('echo') == 'false' or not cell.source.strip()
    cell['execution_count'], cell['metadata'] = None, {'tags': [HIDE_INPUT]} if hide_input else {}
    return bool(cell.outputs) or not hide_input

def tidy_nb(
    path:Path, # A notebook
) -> nbformat.NotebookNode:
    "The notebook at `path` as executed, as a reader should see it"
    nb = read_nb(path)
    nb['cells'] = [o for o in nb.cells if tidy_cell(o)]
    for i,o in enumerate(nb.cells): o['id'] = f'cell-{i}'
    kernel = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
    nb = dict(nb2dict(nb), metadata={'kernelspec': kernel, 'language_info': {'name': 'python'}}, nbformat=4, nbformat_minor=5)
    return nbformat.reads(json.dumps(nb), as_version=4)

def relink(
    text:str, # Markdown
    to, # Called with `!` or nothing, label and address of a link; gives what to put in its place
) -> str:
    "`text` with its relative links replaced"
    def put(m): return m[0] if m[3] is None or re.match(r'[a-z]+:|#|/', m[3]) else to(*m.groups())
    return _link.sub(put, text)

def gfm_cell(
    cell, # A `th` or `td`
) -> str:
    "The text of `cell` as it has to stand in GitHub's markdown, bold if it is so or has a style of its own"
    text = re.sub(r'([\\`*_|<\[\]~$])', r'\\\1', ' '.join(cell.get_text().split()))
    return f'**{text}**' if text and cell.name == 'td' and (cell.get('style') or cell.find(_bold)) else text

def gfm_table(
    html:str, # An HTML output
) -> str|None: # None if there is not one table, or it has more than plain and bold text in its cells
    "`html` as a table in GitHub's markdown"
    soup = BeautifulSoup(html, 'html.parser')
    tables = soup('table')
    if len(tables) != 1: return None
    cells = [row(['th', 'td']) for row in tables[0]('tr')]
    if any(o.get('colspan') or o.get('rowspan') or any(t.name not in _bold for t in o(True)) for row in cells for o in row):
        return None
    heads,rows = [], []
    for row in cells: (heads if all(o.name == 'th' for o in row) else rows).append([gfm_cell(o) for o in row])
    if not heads or len({*map(len, heads), *map(len, rows)}) != 1: return None
    # pandas names the index in a header row of its own, empty elsewhere
    head = [list(filter(None, o)) for o in zip(*heads, strict=True)]
    if any(len(o) > 1 for o in head): return None
    head = [''.join(o) for o in head]
    table = '\n'.join('| ' + ' | '.join(o) + ' |' for o in (head, ['---']*len(head), *rows))
    tables[0].extract()
    rest = ' '.join(soup.get_text().split())
    return f'{table}\n\n{rest}' if rest else table

def github_cell(
    cell, # A cell of a tidy notebook
):
    "Make `cell` ready for GitHub, in place: links from the project's root, and tables in markdown where they can be"
    def from_root(image, label, url): return f'{image}[{label}]({posixpath.normpath(f"nbs/{url}")})'
    if cell.cell_type == 'markdown': cell.source = relink(cell.source, from_root)
    for data in (o.data for o in cell.get('outputs', []) if 'data' in o):
        if table := gfm_table(data.get('text/html', '')): data.update({'text/markdown': table})
        if 'text/markdown' in data: data.pop('text/html', None)

def squeeze(
    text:str, # Markdown
) -> str:
    "`text` without trailing spaces, and with no two empty lines in a row outside of code fences"
    lines, fenced = [], False
    for line in map(str.rstrip, text.strip().split('\n')):
        if line.startswith('```'): fenced = not fenced
        if line or fenced or lines[-1]: lines.append(line)
    return '\n'.join(lines) + '\n'

def readme(
    path:Path, # The notebook
) -> tuple[str,dict]: # The markdown, and the names and bytes of its images
    "A README from the notebook at `path`"
    nb = tidy_nb(path)
    for o in nb.cells: github_cell(o)
    exporter = MarkdownExporter()
    exporter.register_preprocessor('nbconvert.preprocessors.TagRemovePreprocessor', enabled=True)
    exporter._preprocessors[-1].remove_input_tags = {HIDE_INPUT}
    text,resources = exporter.from_notebook_node(nb, {'unique_key': 'index', 'output_files_dir': IMAGES})
    return squeeze(f'{NOTICE}\n\n{text}'), resources['outputs']

@call_parse
def main(
    root:Path=ROOT, # The project
    check:bool=False, # Write nothing; exit with 1 if README.md is not what the notebook says
):
    "Write README.md from nbs/index.ipynb, with the outputs that are committed there"
    root = Path(root)
    text,images = readme(root/'nbs'/'index.ipynb')
    files = {root/'README.md': text.encode(), **{root/k: v for k,v in images.items()}}
    unused = {*(root/IMAGES).glob('index_*')} - {*files}
    if check:
        stale = [*(o.name for o,v in files.items() if not o.exists() or o.read_bytes() != v), *(o.name for o in unused)]
        if stale: sys.exit(f'Not what nbs/index.ipynb says: {", ".join(sorted(stale))}; run `python tools/readme.py`.')
        return
    for path in unused: path.unlink()
    for path,data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
