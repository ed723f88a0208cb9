"Build the documentation site in _docs/ from the package and the notebooks, with their committed outputs"
import ast
import logging
import os
import re
import shutil
import tempfile
from configparser import ConfigParser
from functools import cached_property, reduce
from html import escape
from html.parser import HTMLParser
from importlib import import_module
from inspect import formatannotation, getdoc, isclass
from pathlib import Path
from textwrap import indent
from types import FunctionType, NoneType
from typing import NamedTuple
from urllib.parse import unquote, urldefrag

from bs4 import BeautifulSoup
from fastcore.basics import listify, partition
from fastcore.docments import DocmentTbl, DocmentText, docstring, empty
from fastcore.nbio import nb_frontmatter, read_nb
from fastcore.script import call_parse
from mkdocs.commands.build import build
from mkdocs.config import load_config
from nbdev.config import nbpath2html
from nbdev.doclinks import patch_name
from nbdev.process import Processor
from notebooks import ROOT, is_noise, notebooks
from readme import to_markdown

THEME = ROOT/'tools'/'docs'
_functions = ast.FunctionDef, ast.AsyncFunctionDef
# The examples in the gallery, by section; those that are not listed follow in a section of their own
EXAMPLES = {
    'Coming from another library': 'coming_from_trainer coming_from_blurr',
    'Data': 'choosing_max_length long_documents sentence_pairs your_own_loss_and_data cleaning_labels',
    'Training': """speed_and_memory adapters imbalanced_and_calibrated tracking_and_search competition interrupted_runs
                   many_processes""",
    'Results': 'finding_mistakes why_did_it_say_that embeddings',
    'Deployment': 'save_and_share score_a_dataset architectures'}
# Names in backticks; code, headings and links come first, so that none inside them is linked
_names = re.compile(r'(?s:```.*?```)|^(?: {4}|#).*$|\[[^\]]*\]\([^)]*\)|'
                    r'`(\w[\w.]*)(?:\([^`\n]*\))?`|`[^`\n]*`', re.MULTILINE)

# Documentation of exported names

def defined(
    body:list, # Statements
    prefix:str='', # The class that contains them, and a dot
) -> list[str]: # Such as "HFCallback" and "Learner.hf_predict"
    "Return the public functions, classes and methods that `body` defines"
    res = []
    for o in body:
        if not isinstance(o, (*_functions, ast.ClassDef)) or o.name[0]=='_': continue
        res += [prefix + n for n in listify(patch_name(o))]
        if isinstance(o, ast.ClassDef): res += defined([m for m in o.body if isinstance(m, _functions)], f'{o.name}.')
    return res

def short_types(
    docs, # A `DocmentText` or `DocmentTbl`
):
    "Remove modules from the types in `docs`, and types that are inferred from a default of None or a function"
    for o in docs.dm.values():
        if o.anno in (NoneType, FunctionType): o['anno'] = empty
        if o.anno is empty: continue
        o['anno'] = re.sub(r'\b([a-z_]\w*\.)+(?=[A-Z])', '', formatannotation(o.anno).strip("'"))
    return docs

def signature(
    obj, # A function or class
) -> str: # Python code
    "Return the signature of `obj`, on one line if it is short, without the comments that its table contains"
    text = short_types(DocmentText(obj, maxline=100, docstring=False))
    for o in text.dm.values(): o['docment'] = None
    text = re.sub(r'\(\n +(.+)\n\)', r'(\1)', str(text))
    return re.sub('^def', 'class', text) if isclass(obj) else text

def find_object(
    mod, # A module
    name:str, # A name in it, which may have dots
): # A function or class
    "Return what `name` documents: the getter of a property, or what `mod` adds to a function that dispatches on types"
    obj = reduce(getattr, name.split('.'), mod)
    if isinstance(obj, (property, cached_property)): obj = getattr(obj, 'fget', None) or obj.func
    added = [o.implementation for o in getattr(obj, 'methods', [])]
    return next((o for o in added if o.__module__==mod.__name__), obj)

def show_doc(
    mod, # A module
    name:str, # A name in it, which may have dots
) -> str: # Markdown
    "Return heading, signature, docstring and parameters of `name`"
    obj = find_object(mod, name)
    heading = f"{'####' if '.' in name else '###'} `{name}` {{ #{name} }}"
    parts = heading, f'```python\n{signature(obj)}\n```', docstring(obj), str(short_types(DocmentTbl(obj)))
    return '\n\n'.join(filter(None, parts))

def exported_module(
    directives, # Those of each cell of a notebook, as dicts
): # None if there is none
    "Import the module that a notebook exports"
    name = next((o['default_exp'] for o in directives if 'default_exp' in o), None)
    return name and import_module(f'blurlike.{name}')

def plain_tables(
    html:str, # An output
) -> str:
    "Return `html` without what pandas adds to the looks of a table, so that it looks like all tables of the site"
    soup = BeautifulSoup(html, 'html.parser')
    for o in [*soup(['script', 'progress']), *soup('style', scoped=True)]: o.decompose()
    for o in soup('table'): del o['class'], o['border']
    for o in soup('tr'): del o['style']
    return str(soup)

class ShowDocs(Processor):
    "Replace exported definitions with their documentation and their source, folded unless it is a class"
    def begin(self): self.mod = exported_module(o.directives_ for o in self.nb.cells)

    def cell(self, cell):
        for o in cell.get('outputs', []):
            if html := o.get('data', {}).get('text/html'): o.data['text/html'] = plain_tables(html)
        if 'export' not in cell.directives_: return
        body = cell.parsed_()
        if names := defined(body):
            fold = '???+' if any(isinstance(o, ast.ClassDef) for o in body) else '???'
            source = indent(f'```python\n{cell.source}\n```', '    ')
            docs = [show_doc(self.mod, o) for o in names]
            for o in ('outputs', 'execution_count'): cell.pop(o, None)
            cell.update(cell_type='markdown', source='\n\n'.join([*docs, f'{fold} abstract "Source"\n\n{source}']))
        elif all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in body): del cell['source']

# Entry points

def is_entry_point(
    name:str, # Such as "hf_learner" or "Learner.hf_predict"
    code:str, # Of the README and the examples
) -> bool:
    "Return whether users need `name`: it is in `blurlike.all` or a method of a learner, or `code` uses it"
    owner,_,last = name.rpartition('.')
    public = import_module('blurlike.all')
    if owner: return owner in ('Learner', 'DataLoaders') or hasattr(public, owner) and f'.{last}(' in code
    imported = re.findall(r'^from blurlike\.(?!all).* import (.*)', code, re.MULTILINE)
    return hasattr(public, name) or name in re.findall(r'\w+', ' '.join(imported))

def sorted_names(
    names:list, # What a page documents
    code:str, # Of the README and the examples
) -> tuple[list, list]: # Entry points and helpers
    "Return the entry points, those first that `code` uses most, and the other names"
    entries,helpers = partition(names, lambda o: is_entry_point(o, code))
    def uses(name): return len(re.findall(rf"\b{name.rpartition('.')[2]}\b", code))
    return sorted(entries, key=uses, reverse=True),helpers

def as_used(
    name:str, # Such as "Learner.hf_predict"
) -> str: # Such as "learn.hf_predict"
    "Return `name` as code writes it"
    return re.sub(r'^DataLoaders\.', 'dls.', re.sub(r'^Learner\.', 'learn.', name))

def overview(
    mod, # A module
    names:list, # What its page documents
    code:str, # Of the README and the examples
) -> str: # Markdown; empty without entry points
    "Return a table of the entry points of `mod`, and below it the names of its helpers"
    entries,helpers = sorted_names(names, code)
    if not entries: return ''
    rows = [(f'[`{as_used(o)}`](#{o})', (docstring(find_object(mod, o)) or '').partition('\n')[0].replace('|', '\\|'))
            for o in entries]
    table = '\n'.join(f'| {a} | {b} |' for a,b in [('Entry points', ''), ('---', '---'), *rows])
    if not helpers: return table
    links = ' · '.join(f'[`{o}`](#{o})' for o in helpers)
    return f'{table}\n\n??? abstract "Helpers"\n\n    {links}'

# Pictures

# What the library remarks on the data and the model
_remarks = re.compile(r'^(Inferred task=|Newly initialized in |[\d,]+ of [\d,]+ rows are longer).*\n?', re.MULTILINE)

def ranked(
    output, # An output of a cell
) -> tuple[int, int, str]: # A rank, the length of a text, and HTML; rank 0 is nothing to show
    "Return `output` as HTML: predictions (4), another table (3), lines of text (2), the losses of a training run (1)"
    data = output.get('data', {})
    if html := data.get('text/html'):
        rank = 1 if re.search('fastprogress|<progress', html) else 4 if '>prediction<' in html else 3
        return rank,0,plain_tables(html)
    text = '' if output.get('name')=='stderr' else output.get('text') or data.get('text/plain', '')
    text = _remarks.sub('', ''.join(text))
    return 2*(len(text.splitlines()) > 1),len(text),f'<pre>{escape(text)}</pre>'

def picture(
    nb, # A notebook
    images:list, # The plots in its outputs, as URLs
) -> str: # HTML
    "Return what shows best what a notebook is about: a plot, else the output with the highest rank"
    if images: return f'<img src="{images[0]}" alt="">'
    shown = [o for o in nb.cells if 'hide' not in o.directives]
    found = [ranked(o) for cell in shown for o in cell.get('outputs', []) if not is_noise(o)]
    rank,_,html = max(found, key=lambda o: o[:2], default=(0, 0, ''))
    return html if rank else ''

# Pages

class Page(NamedTuple):
    "A notebook as a page of the site"
    dst: Path # Its path in the site, without the number
    title: str
    subtitle: str
    text: str # Markdown
    names: list # What it documents
    images: dict # Paths and bytes of the images in its outputs
    picture: str # HTML

def read_page(
    path:Path, # A notebook
    nbs:Path, # The folder of all notebooks
    code:str, # Of the README and the examples
) -> Page:
    "Convert the notebook at `path` to Markdown"
    nb,dst = read_nb(path),nbpath2html(path.relative_to(nbs)).with_suffix('.md')
    about,mod = nb_frontmatter(nb),exported_module(o.directives for o in nb.cells)
    text,images = to_markdown(path, 'outputs', ShowDocs)
    names = re.findall(r'^#+ `.+` \{ #(\S+) \}$', text, re.MULTILINE)
    if mod: text = re.sub(r'\A# .+\n+(>.*\n)?', lambda m: f'{m[0]}\n{overview(mod, names, code)}\n\n', text)
    show = picture(nb, [] if mod else [(dst.parent/o).as_posix() for o in images])
    return Page(dst, re.sub('[`*]', '', about['title']), about.get('description', ''), text, names, images, show)

def targets(
    pages:list, # All pages
) -> dict: # Names, and the page and anchor that documents each
    "Return where to link names to: methods of `Learner` and `DataLoaders` also as `learn.name` and `dls.name`"
    res = {}
    for p in pages:
        for o in p.names:
            for name in (o, as_used(o)): res.setdefault(name, f'{p.dst.as_posix()}#{o}')
    return res

def add_links(
    text:str, # Markdown
    folder:Path, # The folder of its page
    names:dict, # See `targets`
) -> str: # Markdown
    "Link names in backticks to their documentation, and notebooks to their pages"
    def to(m): return f'[{m[0]}]({os.path.relpath(names[m[1]], folder)})' if m[1] in names else m[0]
    return _names.sub(to, re.sub(r'(\]\([^)\s]*?)(?:\d+\w?_)?(\w+)\.ipynb\b', r'\1\2.md', text))

# Examples

def task_titles() -> dict: # Names of modules, and titles
    "Return a title for each module that has tasks, with their names as words"
    res = {}
    for name,o in import_module('blurlike.all').all_tasks().items():
        words = name.replace('-', ' ').replace('multi label', 'multi-label').replace(' lm', ' language modeling')
        if not o.__subclasses__(): res.setdefault(o.__module__.rpartition('.')[2], []).append(words)
    return {k: ' and '.join(v).capitalize() for k,v in res.items()}

def example_sections(
    pages:list, # All pages
) -> dict: # Titles of sections, and pages
    "Return the examples by section, and after the first the pages of the tasks"
    titles,rest = task_titles(),{o.dst.stem: o for o in pages if o.dst.parts[0]=='examples'}
    res = {k: [rest.pop(o) for o in v.split() if o in rest] for k,v in EXAMPLES.items()} | {'More': [*rest.values()]}
    tasks = [o._replace(title=titles[o.dst.stem]) for o in pages if o.dst.parts[0]=='tasks' and o.dst.stem in titles]
    return {'Tasks': tasks} | {k: v for k,v in res.items() if v}

def card(
    page:Page, # A page
) -> str: # HTML
    "Return a link to `page` with its picture, from a page in a folder"
    subtitle = re.sub('`(.+?)`', r'<code>\1</code>', page.subtitle)
    show = page.picture.replace('`', '&#96;') # or names would become links
    if show.startswith('<img'): show = show.replace('src="', 'src="../')
    return (f'<a class="card" href="../{page.dst.with_suffix(".html").as_posix()}">'
            f'<div class="picture" aria-hidden="true" inert><div>{show}</div></div>'
            f'<strong>{page.title}</strong><span>{subtitle}</span></a>')

def gallery(
    sections:dict, # See `example_sections`
) -> str: # Markdown
    "Return the page that lists the examples"
    res = ['# Examples']
    for k,v in sections.items(): res += [f'## {k}', '\n'.join(['<div class="gallery">', *map(card, v), '</div>'])]
    return '\n\n'.join(res) + '\n'

def reference(
    pages:list, # The pages of the library
    code:str, # Of the README and the examples
) -> str: # Markdown
    "Return the page that lists all names, the entry points first"
    res = ['# Reference', getdoc(import_module('blurlike')) or '']
    found = [(o, *(' · '.join(f'`{n}`' for n in v) for v in sorted_names(o.names, code))) for o in pages if o.names]
    for o,entries,helpers in sorted(found, key=lambda o: not o[1]):
        res += [f'## [{o.title}]({o.dst})', o.subtitle]
        if entries: res.append(f'**{entries}**')
        if helpers: res.append(f'Helpers: {helpers}')
    return '\n\n'.join(res) + '\n'

# The site

def navigation(
    home:Page, # The index
    library:list, # Pages
    examples:dict, # See `example_sections`
) -> list: # As in mkdocs.yml
    "Return the navigation: the examples by section, and the library by storey in reading order"
    storeys = {}
    for o in library: storeys.setdefault(o.dst.parent.name or o.title, []).append({o.title: str(o.dst)})
    storeys = [o[0] if [k]==[*o[0]] else {k: o} for k,o in storeys.items()]
    listed = [{k: [{o.title: str(o.dst)} for o in v]} for k,v in examples.items() if k!='Tasks']
    return [{'Home': str(home.dst)}, {'Examples': [{'Gallery': 'examples/index.md'}, *listed]},
            {'Library': [{'Reference': 'reference.md'}, *storeys]}]

def write_sources(
    root:Path, # The project
    out:Path, # An empty folder
) -> list: # The navigation
    "Write everything that MkDocs needs to `out`"
    paths = notebooks(root)
    shown = [read_nb(o) for o in paths if o.stem=='index' or o.parent.name=='examples']
    code = '\n'.join(cell.source for nb in shown for cell in nb.cells if cell.cell_type=='code')
    home,*rest = pages = [read_page(o, root/'nbs', code) for o in paths]
    library,examples = [o for o in rest if o.dst.parts[0]!='examples'],example_sections(pages)
    files,names = {},targets(pages)
    for o in pages: files |= {o.dst: o.text, **{o.dst.parent/k: v for k,v in o.images.items()}}
    files |= {Path('examples/index.md'): gallery(examples), Path('reference.md'): reference(library, code)}
    for k,v in files.items():
        (out/k).parent.mkdir(parents=True, exist_ok=True)
        (out/k).write_bytes(v if isinstance(v, bytes) else add_links(v, k.parent, names).encode())
    shutil.copytree(root/'nbs'/'images', out/'images', dirs_exist_ok=True)
    shutil.copy(THEME/'site.css', out)
    return navigation(home, library, examples)

_links = 'a', 'script', 'link', 'img', 'iframe', 'source', 'video', 'object'

class Links(HTMLParser):
    "The ids of a page, the pages that it links to, and the files that it fetches"
    def __init__(self,
        text:str, # HTML
    ):
        super().__init__()
        self.ids,self.urls = set(),[]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if 'id' in attrs: self.ids.add(attrs['id'])
        url = attrs.get('src') or attrs.get('href')
        if url and tag in _links: self.urls.append((tag, url))

def problems(
    out:Path, # The built site
) -> list[str]:
    "Return what would not work without a network: files from elsewhere and dead links"
    # The links in 404.html start at the root of a server
    pages = {o: Links(o.read_text(encoding='utf-8')) for o in out.rglob('*.html') if o.name!='404.html'}
    res = []
    for page,links in pages.items():
        for tag,url in links.urls:
            if re.match(r'[a-z]+:|//', url):
                if tag!='a' and not url.startswith('data:'): res.append(f'{page} fetches {url}')
                continue
            path,anchor = map(unquote, urldefrag(url))
            target = Path(os.path.normpath(page.parent/path)) if path else page
            if target.is_dir(): target /= 'index.html'
            if not target.exists(): res.append(f'{page} links to {url}, which does not exist')
            elif anchor and (target not in pages or anchor not in pages[target].ids):
                res.append(f'{page} links to {url}, which has no anchor')
    return res

def build_site(
    root:Path, # The project
    out:Path, # The folder to write to
) -> Path: # `out`
    "Build the site; raise `ValueError` for links that lead nowhere and for files fetched from elsewhere"
    parser = ConfigParser()
    parser.read(root/'settings.ini', encoding='utf-8')
    about = parser['DEFAULT']
    with tempfile.TemporaryDirectory() as sources:
        nav = write_sources(root, Path(sources))
        build(load_config(str(THEME/'mkdocs.yml'), docs_dir=sources, site_dir=str(out), nav=nav, strict=True,
                          site_name=about['lib_name'], site_description=about['description']))
    if found := problems(out): raise ValueError('\n'.join(['Problems in the site:', *found]))
    return out

@call_parse
def main(
    root:Path=ROOT, # The project
):
    "Build the documentation site in _docs/"
    logging.basicConfig(level=logging.WARNING, format='%(levelname)s: %(message)s')
    # MkDocs and huggingface_hub read these when they are imported
    os.environ |= {'NO_MKDOCS_2_WARNING': '1', 'HF_HUB_OFFLINE': '1'}
    out = build_site(Path(root).resolve(), Path(root).resolve()/'_docs')
    print(f"{out} has {sum(1 for _ in out.rglob('*.html'))} pages")
