"Build the documentation site in _docs/ from the package and the notebooks, with their committed outputs"
import ast
import logging
import os
import re
import shutil
import tempfile
from configparser import ConfigParser
from functools import cached_property, reduce
from importlib import import_module
from inspect import formatannotation, getdoc, isclass
from pathlib import Path
from textwrap import indent
from types import FunctionType, NoneType
from typing import NamedTuple
from urllib.parse import unquote, urldefrag

from bs4 import BeautifulSoup
from fastcore.basics import listify
from fastcore.docments import DocmentTbl, DocmentText, docstring, empty
from fastcore.nbio import nb_frontmatter, read_nb
from fastcore.script import call_parse
from mkdocs.commands.build import build
from mkdocs.config import load_config
from nbdev.config import nbpath2html
from nbdev.doclinks import patch_name
from nbdev.process import Processor
from notebooks import ROOT, notebooks
from readme import to_markdown

THEME = ROOT/'tools'/'docs'
_functions = ast.FunctionDef, ast.AsyncFunctionDef
# Names in backticks; code, headings and links come first, so that none inside them is linked
_names = re.compile(r'(?s:```.*?```)|^(?: {4}|#).*$|\[[^\]]*\]\([^)]*\)|`(\w[\w.]*)(?:\(\))?`|`[^`\n]*`', re.MULTILINE)

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

def show_doc(
    mod, # A module
    name:str, # A name in it, which may have dots
) -> str: # Markdown
    "Return heading, signature, docstring and parameters of `name`"
    obj = reduce(getattr, name.split('.'), mod)
    if isinstance(obj, (property, cached_property)): obj = getattr(obj, 'fget', None) or obj.func
    # A function that dispatches on types: what this module adds to it
    added = [o.implementation for o in getattr(obj, 'methods', [])]
    obj = next((o for o in added if o.__module__==mod.__name__), obj)
    heading = f"{'####' if '.' in name else '###'} `{name}` {{ #{name} }}"
    parts = heading, f'```python\n{signature(obj)}\n```', docstring(obj), str(short_types(DocmentTbl(obj)))
    return '\n\n'.join(filter(None, parts))

class ShowDocs(Processor):
    "Replace exported definitions with their documentation and their source, folded unless it is a class"
    def begin(self):
        name = next((o.directives_['default_exp'] for o in self.nb.cells if 'default_exp' in o.directives_), None)
        self.mod = name and import_module(f'blurlike.{name}')

    def cell(self, cell):
        if 'export' not in cell.directives_: return
        body = cell.parsed_()
        if names := defined(body):
            fold = '???+' if any(isinstance(o, ast.ClassDef) for o in body) else '???'
            source = indent(f'```python\n{cell.source}\n```', '    ')
            docs = [show_doc(self.mod, o) for o in names]
            for o in ('outputs', 'execution_count'): cell.pop(o, None)
            cell.update(cell_type='markdown', source='\n\n'.join([*docs, f'{fold} abstract "Source"\n\n{source}']))
        elif all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in body): del cell['source']

# Pages

class Page(NamedTuple):
    "A notebook as a page of the site"
    dst: Path # Its path in the site, without the number
    title: str
    subtitle: str
    text: str # Markdown
    names: list # What it documents
    images: dict # Paths and bytes of the images in its outputs

def read_page(
    path:Path, # A notebook
    nbs:Path, # The folder of all notebooks
) -> Page:
    "Convert the notebook at `path` to Markdown"
    about,dst = nb_frontmatter(read_nb(path)), nbpath2html(path.relative_to(nbs)).with_suffix('.md')
    text,images = to_markdown(path, 'outputs', ShowDocs)
    names = re.findall(r'^#+ `.+` \{ #(\S+) \}$', text, re.MULTILINE)
    return Page(dst, re.sub('[`*]', '', about['title']), about.get('description', ''), text, names, images)

def targets(
    pages:list, # All pages
) -> dict: # Names, and the page and anchor that documents each
    "Return where to link names to: methods of `Learner` and `DataLoaders` also as `learn.name` and `dls.name`"
    res = {}
    for p in pages:
        for o in p.names:
            alias = re.sub(r'^DataLoaders\.', 'dls.', re.sub(r'^Learner\.', 'learn.', o))
            for name in (o, alias): res.setdefault(name, f'{p.dst.as_posix()}#{o}')
    return res

def add_links(
    text:str, # Markdown
    folder:Path, # The folder of its page
    names:dict, # See `targets`
) -> str: # Markdown
    "Link names in backticks to their documentation, and notebooks to their pages"
    def to(m): return f'[{m[0]}]({os.path.relpath(names[m[1]], folder)})' if m[1] in names else m[0]
    return _names.sub(to, re.sub(r'(\]\([^)\s]*?)(?:\d+\w?_)?(\w+)\.ipynb\b', r'\1\2.md', text))

def gallery(
    pages:list, # The examples
) -> str: # Markdown
    "Return the page that lists the examples"
    cards = [f'-   [__{o.title}__]({o.dst.name})\n\n    {o.subtitle}\n' for o in pages]
    return '\n'.join(['# Examples\n', '<div class="grid cards" markdown>\n', *cards, '</div>\n'])

def reference(
    pages:list, # The pages of the library
) -> str: # Markdown
    "Return the page that lists all names"
    res = ['# Reference', getdoc(import_module('blurlike')) or '']
    for o in pages:
        if o.names: res += [f'## [{o.title}]({o.dst})', o.subtitle, ' · '.join(f'`{n}`' for n in o.names)]
    return '\n\n'.join(res) + '\n'

def navigation(
    home:Page, # The index
    library:list, # Pages
    examples:list, # Pages
) -> list: # As in mkdocs.yml
    "Return the navigation: the library by storey, in reading order"
    sections = {}
    for o in library: sections.setdefault(o.dst.parent.name or o.title, []).append({o.title: str(o.dst)})
    storeys = [o[0] if [k]==[*o[0]] else {k: o} for k,o in sections.items()]
    listed = [{'Gallery': 'examples/index.md'}, *({o.title: str(o.dst)} for o in examples)]
    return [{'Home': str(home.dst)}, {'Library': storeys}, {'Examples': listed}, {'Reference': 'reference.md'}]

def write_sources(
    root:Path, # The project
    out:Path, # An empty folder
) -> list: # The navigation
    "Write everything that MkDocs needs to `out`"
    home,*rest = pages = [read_page(o, root/'nbs') for o in notebooks(root)]
    examples = [o for o in rest if o.dst.parts[0]=='examples']
    library = [o for o in rest if o not in examples]
    files,names = {}, targets(pages)
    for o in pages: files |= {o.dst: o.text, **{o.dst.parent/k: v for k,v in o.images.items()}}
    files |= {Path('examples/index.md'): gallery(examples), Path('reference.md'): reference(library)}
    for k,v in files.items():
        (out/k).parent.mkdir(parents=True, exist_ok=True)
        (out/k).write_bytes(v if isinstance(v, bytes) else add_links(v, k.parent, names).encode())
    shutil.copytree(root/'nbs'/'images', out/'images', dirs_exist_ok=True)
    shutil.copy(THEME/'site.css', out)
    return navigation(home, library, examples)

# The site

def problems(
    out:Path, # The built site
) -> list[str]:
    "Return what would not work without a network: files from elsewhere and dead links"
    # The links in 404.html start at the root of a server
    pages = [o for o in out.rglob('*.html') if o.name!='404.html']
    soups = {o: BeautifulSoup(o.read_text(encoding='utf-8'), 'html.parser') for o in pages}
    ids = {page: {o['id'] for o in soup(id=True)} for page,soup in soups.items()}
    res = []
    for page,soup in soups.items():
        for o in soup(['a', 'script', 'link', 'img', 'iframe', 'source', 'video', 'object']):
            url = o.get('src') or o.get('href') or ''
            if re.match(r'[a-z]+:|//', url):
                if o.name!='a' and not url.startswith('data:'): res.append(f'{page} fetches {url}')
                continue
            path,anchor = map(unquote, urldefrag(url))
            target = Path(os.path.normpath(page.parent/path)) if path else page
            if target.is_dir(): target /= 'index.html'
            if not target.exists(): res.append(f'{page} links to {url}, which does not exist')
            elif anchor and anchor not in ids.get(target, ()): res.append(f'{page} links to {url}, which has no anchor')
    return res

def build_site(
    root:Path, # The project
) -> Path: # The site
    "Build the site; raise `ValueError` for links that lead nowhere and for files fetched from elsewhere"
    parser,out = ConfigParser(), root/'_docs'
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
    out = build_site(Path(root).resolve())
    print(f"{out} has {sum(1 for _ in out.rglob('*.html'))} pages")
