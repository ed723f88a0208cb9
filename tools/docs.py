"Build the documentation site into _docs/ from the notebooks as they are committed, and from the package"
import ast
import importlib
import inspect
import logging
import os
import posixpath
import re
import shutil
import sys
import tempfile
import tokenize
import warnings
from base64 import b64decode
from configparser import ConfigParser
from functools import cached_property, partial, reduce
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urldefrag

import nbformat
from bs4 import BeautifulSoup
from fastcore.basics import listify
from fastcore.docments import docments
from fastcore.script import call_parse
from mkdocs.commands.build import build
from mkdocs.config import load_config
from nbdev.doclinks import patch_name
from readme import relink, tidy_nb

ROOT = Path(__file__).resolve().parent.parent
THEME = ROOT/'tools'/'docs'
_suffixes = {'image/png': '.png', 'image/jpeg': '.jpg', 'image/svg+xml': '.svg'}
_symbol = re.compile(r'\[[^\]]*\]\([^)]*\)|`(\w[\w.]*)(?:\(\))?`|`[^`]*`')

# The API: what the modules hold

class Attr(NamedTuple):
    "An assignment in a class or a module"
    type: str
    value: str
    comment: str

class Entry(NamedTuple):
    "A public name of a module, or a public method of a class"
    name: str # As a user writes it, such as `Learner.hf_predict`
    kind: str # "class", "def", "property" or "value"
    objs: list # What to show: several if the function dispatches on types
    attrs: dict # A class's commented attributes, or the value itself
    members: list # A class's methods

class Module(NamedTuple):
    "A generated module"
    name: str
    notebook: str # The file name
    doc: str
    entries: list

def comments(
    path:Path, # A Python file
) -> dict: # Line numbers and texts
    "The comments in `path`"
    with tokenize.open(path) as f:
        return {o.start[0]: o.string.lstrip('# ') for o in tokenize.generate_tokens(f.readline) if o.type == tokenize.COMMENT}

def attributes(
    body:list, # The statements of a class or a module
    notes:dict, # The file's comments
) -> dict: # Names, and an `Attr` each
    "The names that `body` assigns"
    res = {}
    for o in body:
        if not isinstance(o, (ast.Assign, ast.AnnAssign)): continue
        for target in o.targets if isinstance(o, ast.Assign) else [o.target]:
            if not isinstance(target, ast.Name): continue
            kind = ast.unparse(o.annotation) if isinstance(o, ast.AnnAssign) else ''
            res[target.id] = Attr(kind, ast.unparse(o.value) if o.value else '', notes.get(o.end_lineno, ''))
    return res

def resolve(
    mod, # A module
    name:str, # A name in it, with dots
) -> tuple[list,str]: # Objects and kind, as in `Entry`
    "What `name` means in `mod`"
    *path,last = name.split('.')
    owner = reduce(getattr, path, mod)
    obj = inspect.getattr_static(owner, last)
    if isinstance(obj, property): return [obj.fget], 'property'
    if isinstance(obj, cached_property): return [obj.func], 'property'
    obj = getattr(owner, last)
    if type(obj).__module__.startswith('plum'):
        # One function stands for several methods if it has defaults
        return list(dict.fromkeys(o.implementation for o in obj.methods if o.implementation.__module__ == mod.__name__)), 'def'
    return [obj], 'class' if inspect.isclass(obj) else 'def'

def members(
    mod, # A module
    node:ast.ClassDef, # A class in it
) -> list:
    "The public methods of the class"
    names = [o.name for o in node.body if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef)) and o.name[0] != '_']
    return [entry(mod, f'{node.name}.{o}') for o in dict.fromkeys(names)]

def entry(
    mod, # A module
    name:str, # A name in it, with dots
    node:ast.ClassDef=None, # If it is a class
    notes:dict=None, # The file's comments
) -> Entry:
    "What is to be said about `name`"
    objs,kind = resolve(mod, name)
    if node is None: return Entry(name, kind, objs, {}, [])
    attrs = {k: v for k,v in attributes(node.body, notes).items() if v.comment and k[0] != '_'}
    return Entry(name, kind, objs, attrs, members(mod, node))

def entries(
    mod, # An imported module
) -> list:
    "The public names of `mod` in the order of its source; methods patched on a class of its own stand with the class"
    source,notes,res = Path(mod.__file__).read_text(encoding='utf-8'), comments(mod.__file__), {}
    body,public = ast.parse(source).body, set(getattr(mod, '__all__', []))
    values = attributes(body, notes)
    for o in body:
        if isinstance(o, ast.Assign) and (name := getattr(o.targets[0], 'id', '')) in public:
            res[name] = Entry(name, 'value', [], {name: values[name]}, [])
        if not isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): continue
        for name in listify(patch_name(o)):
            owner,_,last = name.rpartition('.')
            if name in res or last[0] == '_' or not (owner or name in public): continue
            if owner in res: res[owner].members.append(entry(mod, name))
            else: res[name] = entry(mod, name, o if isinstance(o, ast.ClassDef) else None, notes)
    return list(res.values())

def modules(
    root:Path, # The project
    lib:str, # The package
) -> list[Module]:
    "The generated modules of `lib`, in the order of their notebooks"
    res = []
    for path in (root/lib).rglob('*.py'):
        made_by = re.search(r'File to edit: (\S+)\.$', path.read_text(encoding='utf-8'), re.MULTILINE)
        if not made_by or path.name.startswith('_'): continue
        name = '.'.join(path.relative_to(root).with_suffix('').parts)
        mod = importlib.import_module(name)
        res.append(Module(name, posixpath.basename(made_by[1]), inspect.getdoc(mod) or '', entries(mod)))
    return sorted(res, key=lambda o: o.notebook)

# The API: how it is shown

class Raw(str):
    "Text that shows in a signature as it is"
    __repr__ = str.__str__

def type_str(
    anno, # An annotation
) -> str:
    "`anno` without the modules of classes"
    if anno is inspect.Parameter.empty: return ''
    text = anno if isinstance(anno, str) else inspect.formatannotation(anno)
    return re.sub(r'\b([a-z_]\w*\.)+(?=[A-Z])', '', re.sub(r"ForwardRef\('(.+?)'\)", r'\1', text.strip("'")))

def default_str(
    value, # A parameter's default
) -> str:
    "`value` in short, and the same in every build"
    if value is inspect.Parameter.empty: return ''
    text = re.sub(r' at 0x[0-9a-f]+', '', getattr(value, '__name__', None) or repr(value))
    return text if len(text) <= 60 else text[:57] + '...'

def signature(
    obj, # A function or a class
) -> inspect.Signature|None: # None if it has none to show
    "The signature of `obj` as its callers see it, in short types"
    try: sig = inspect.signature(obj)
    except (TypeError, ValueError): return None
    def short(p):
        anno,default = (o if o is p.empty else Raw(f(o)) for f,o in ((type_str, p.annotation), (default_str, p.default)))
        return p.replace(annotation=anno, default=default)
    params = [short(p) for i,p in enumerate(sig.parameters.values()) if i or p.name != 'self']
    ret = sig.empty if inspect.isclass(obj) else sig.return_annotation
    return sig.replace(parameters=params, return_annotation=ret if ret is sig.empty else Raw(type_str(ret)))

def signature_str(
    entry:Entry, # What has the signature
    sig:inspect.Signature, # See `signature`
) -> str:
    "The signature as code, on one line if it is short"
    ret = '' if sig.return_annotation is sig.empty else f' -> {sig.return_annotation}'
    if entry.kind == 'property': return f'{entry.name}{ret}'
    head,params = f'{entry.kind} {entry.name}', [str(o) for o in sig.parameters.values()]
    # As Python has it: a star of its own before keywords that no `*args` precedes
    kinds = [o.kind.name for o in sig.parameters.values()]
    if 'KEYWORD_ONLY' in kinds and 'VAR_POSITIONAL' not in kinds: params.insert(kinds.index('KEYWORD_ONLY'), '*')
    line = f'{head}({", ".join(params)}){ret}'
    return line if len(line) <= 88 else f'{head}(\n    ' + ',\n    '.join(params) + f'\n){ret}'

def return_comment(
    obj, # A function
) -> str:
    "The comment beside the closing parenthesis, which docments only reads after an annotation"
    try: source = inspect.getsource(obj)
    except (TypeError, OSError): return ''
    found = re.search(r'^\s*\)\s*:\s*# *(.+)$', source, re.MULTILINE)
    return found[1] if found and not inspect.isclass(obj) else ''

def cell(
    text:str, # Markdown
) -> str:
    "`text` in a cell of a table: bars are escaped, unless they are code"
    parts = ' '.join(text.split()).split('`')
    return '`'.join(o if i%2 else o.replace('|', r'\|') for i,o in enumerate(parts))

def code(
    text:str, # A type or a value
) -> str:
    "`text` as code, nothing if it is empty"
    return f'`{text}`' if text else ''

def table(
    first:str, # The heading of the first column
    rows:list, # Name, type, default and description of each
) -> str:
    "A table in markdown, empty without rows"
    if not rows: return ''
    lines = [f'| {first} | type | default | description |', '| --- | --- | --- | --- |']
    return '\n'.join(lines + ['| ' + ' | '.join(map(cell, o)) + ' |' for o in rows])

def param_notes(
    obj, # A function or a class
) -> dict: # Names and comments
    "The comments beside the parameters of `obj`; as with docstrings, those of the method that it overrides where it has none"
    obj = obj if hasattr(obj, '__signature__') else inspect.unwrap(obj)
    owner,_,name = getattr(obj, '__qualname__', '').rpartition('.')
    owner = getattr(sys.modules.get(obj.__module__), owner, None) if owner and not inspect.isclass(obj) else None
    over = [vars(o)[name] for o in inspect.getmro(owner)[1:] if inspect.isfunction(vars(o).get(name))] if owner else []
    res = {}
    for o in (obj, *over): res |= {k: v for k,v in docments(o, args_kwargs=True).items() if v and not res.get(k)}
    return res

def param_table(
    obj, # A function or a class
    sig:inspect.Signature, # See `signature`
    attrs:dict, # The comments of a class's attributes, for classes whose parameters they are
) -> str:
    "The parameters of `obj` and what it returns, empty if there is nothing to say"
    notes = param_notes(obj)
    def row(p):
        star = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')
        kind = p.annotation if p.annotation is not p.empty else ''
        note = notes.get(p.name) or (attrs[p.name].comment if p.name in attrs else '')
        return code(star + p.name), code(kind), code('' if p.default is p.empty else str(p.default)), note
    rows = [row(p) for p in sig.parameters.values()]
    ret = '' if sig.return_annotation is sig.empty else sig.return_annotation
    note = '' if inspect.isclass(obj) else notes.get('return') or return_comment(obj)
    if ret or note: rows.append(('**returns**', code(ret), '', note))
    return table('parameter', rows)

def bases(
    obj, # Anything
) -> str:
    "A line on the base classes of a class"
    # What the source says: a named tuple's base is `NamedTuple` there and `tuple` afterwards
    names = vars(obj).get('__orig_bases__', obj.__bases__) if inspect.isclass(obj) else []
    names = [getattr(o, '__name__', type_str(o)) for o in names if o is not object]
    return f'Bases: {", ".join(map(code, names))}' if names else ''

def entry_md(
    entry:Entry, # What to show
    level:int=2, # Of its heading
) -> str:
    "The section on `entry`, and on the members of a class"
    parts,params = [f'{"#"*level} `{entry.name}` {{ #{entry.name} }}'], set()
    for obj in entry.objs:
        sig = signature(obj)
        if sig: parts.append(f'```python\n{signature_str(entry, sig)}\n```')
        parts += [inspect.getdoc(obj) or '', bases(obj)]
        if sig:
            parts.append(param_table(obj, sig, entry.attrs))
            params |= {*sig.parameters}
    if entry.kind == 'value':
        value, = entry.attrs.values()
        parts += [f'```python\n{entry.name} = {value.value}\n```', value.comment]
    else: parts.append(table('attribute', [(code(k), code(v.type), code(v.value), v.comment)
                                           for k,v in entry.attrs.items() if k not in params]))
    return '\n\n'.join([o for o in parts if o] + [entry_md(o, level+1) for o in entry.members])

# The pages

class Page(NamedTuple):
    "A notebook in the site"
    src: str # Its path in nbs
    dst: str # Its path in the site, without the number
    title: str
    subtitle: str
    nb: nbformat.NotebookNode

class Site(NamedTuple):
    "What the pages need to link to each other"
    nbs: Path # The notebooks
    out: Path # Where the sources of the site are gathered
    pages: dict # Notebook paths and pages
    symbols: dict # Public names, and page and anchor of each

def read_page(
    nbs:Path, # The notebooks
    path:Path, # One of them
) -> Page: # Raises `ValueError` if it has no title
    "The notebook at `path`, with title and subtitle out of its first cell"
    nb,src = tidy_nb(path), path.relative_to(nbs)
    first = nb.cells[0].source if nb.cells else ''
    title = re.match(r'#\s+(.+)', first)
    if not title: raise ValueError(f'{path} must start with a markdown cell "# title".')
    subtitle = re.search(r'(^>.*\n?)+', first, re.MULTILINE)
    subtitle = ' '.join(o.lstrip('> ') for o in subtitle[0].splitlines()) if subtitle else ''
    return Page(src.as_posix(), src.with_name(re.sub(r'^\d+[a-z]?_', '', src.name)).as_posix(), title[1].strip(), subtitle, nb)

def read_pages(
    nbs:Path, # The notebooks
) -> dict: # Notebook paths and pages
    "All notebooks in the order of the site"
    paths = [o for o in sorted(nbs.rglob('[!_.]*.ipynb')) if o != nbs/'index.ipynb']
    pages = {o.src: o for o in (read_page(nbs, o) for o in [nbs/'index.ipynb', *paths])}
    if len({o.dst for o in pages.values()}) < len(pages): raise ValueError('Two notebooks differ by no more than their number.')
    return pages

def symbol_table(
    mods:list, # The modules
) -> dict: # Names, and page and anchor of each
    "Where each public name is documented; a method of a learner goes by `learn.name`, too"
    res = {}
    for mod in mods:
        res[mod.name] = f'api/{mod.name}', ''
        for o in mod.entries:
            for name in (o.name, *(m.name for m in o.members)):
                alias = re.sub(r'^DataLoaders\.', 'dls.', re.sub(r'^Learner\.', 'learn.', name))
                for n in (name, alias, f'{mod.name}.{name}'): res.setdefault(n, (f'api/{mod.name}', f'#{name}'))
    return res

def link_symbols(
    text:str, # Markdown
    folder:str, # The folder of the page that it is for
    ext:str, # How the linked pages end
    symbols:dict, # See `symbol_table`
) -> str:
    "`text` with public names in backticks linked to the API, outside of headings and code"
    def to(m):
        if m[1] not in symbols: return m[0] # also a link, or other code
        page,anchor = symbols[m[1]]
        return f'[{m[0]}]({posixpath.relpath(page, folder or ".")}{ext}{anchor})'
    lines,fenced = [], False
    for line in text.split('\n'):
        if line.lstrip().startswith('```'): fenced = not fenced
        lines.append(line if fenced or line.startswith('#') else _symbol.sub(to, line))
    return '\n'.join(lines)

def site_links(
    text:str, # Markdown of a notebook
    page:Page, # The notebook
    site:Site,
) -> str: # Raises `ValueError` for a link that leads nowhere
    "`text` with links to notebooks leading to their pages, images copied, and links to other files of the project as plain text"
    folder = posixpath.dirname(page.src)
    def to(image, label, url):
        path,anchor = urldefrag(url)
        target = posixpath.normpath(posixpath.join(folder, unquote(path)))
        if target in site.pages:
            dst = posixpath.relpath(site.pages[target].dst, folder or '.').replace('.ipynb', '.html')
            return f'[{label}]({dst}{"#" if anchor else ""}{anchor.lower()})'
        if not (site.nbs/target).exists(): raise ValueError(f'{page.src} links to {url}, which does not exist.')
        if not image: return label
        (site.out/target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(site.nbs/target, site.out/target)
        return f'![{label}]({url})'
    return relink(text, to)

def write_images(
    page:Page, # The notebook, whose outputs come to refer to the files
    site:Site,
):
    "Write the images in the outputs of the notebook to files"
    outputs = [o for c in page.nb.cells for o in c.get('outputs', []) if {*o.get('data', {})} & {*_suffixes}]
    for i,o in enumerate(outputs):
        (kind,data), = o.data.items()
        path = Path(page.dst).with_suffix(f'.{i}{_suffixes[kind]}')
        (site.out/path).write_bytes(data.encode() if kind == 'image/svg+xml' else b64decode(data))
        o.data = {'text/html': f'<img src="{path.name}" alt="Output of the code above">'}

def write_notebook(
    page:Page, # The notebook
    site:Site,
):
    "Write the notebook as a source of the site"
    for o in page.nb.cells:
        if o.cell_type == 'markdown':
            o.source = link_symbols(site_links(o.source, page, site), posixpath.dirname(page.src), '.html', site.symbols)
    dst = site.out/page.dst
    dst.parent.mkdir(parents=True, exist_ok=True)
    write_images(page, site)
    nbformat.write(page.nb, dst)

def write_gallery(
    site:Site,
) -> list: # The pages of the section
    "Write the page that lists the examples"
    pages = [o for o in site.pages.values() if o.src.startswith('examples/')]
    if not pages: return []
    cards = [f'-   [__{o.title}__]({posixpath.basename(o.dst)})\n\n    {o.subtitle}\n' for o in pages]
    text = '\n'.join(['# Examples', '', '<div class="grid cards" markdown>', '', *cards, '</div>', ''])
    (site.out/'examples'/'index.md').write_text(link_symbols(text, 'examples', '.md', site.symbols), encoding='utf-8')
    return [{'Gallery': 'examples/index.md'}, *map(nav_item, pages)]

def write_api(
    mods:list, # The modules
    doc:str, # On the package as a whole
    site:Site,
) -> list: # The pages of the section
    "Write the overview of the API, and a page for each module"
    (site.out/'api').mkdir()
    overview = ['# API', doc]
    for mod in mods:
        page = next((o for o in site.pages.values() if posixpath.basename(o.src) == mod.notebook), None)
        origin = f'Made in the notebook [{page.title}]({posixpath.relpath(page.dst, "api")}).' if page else ''
        text = '\n\n'.join([f'# {mod.name}', mod.doc, origin, *map(entry_md, mod.entries)]) + '\n'
        (site.out/'api'/f'{mod.name}.md').write_text(link_symbols(text, 'api', '.md', site.symbols), encoding='utf-8')
        overview += [f'## [{mod.name}]({mod.name}.md)', mod.doc, ' · '.join(f'`{o.name}`' for o in mod.entries)]
    text = link_symbols('\n\n'.join(overview) + '\n', 'api', '.md', site.symbols)
    (site.out/'api'/'index.md').write_text(text, encoding='utf-8')
    return [{'Overview': 'api/index.md'}, *({o.name.partition('.')[2]: f'api/{o.name}.md'} for o in mods)]

def nav_item(
    page:Page, # A notebook
) -> dict:
    "The entry of `page` in the navigation"
    return {re.sub('[`*]', '', page.title): page.dst}

# The site

def write_sources(
    root:Path, # The project
    lib:str, # The package
    out:Path, # An empty folder
) -> list: # The navigation
    "Write everything that MkDocs needs to `out`"
    sys.path.insert(0, str(root))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        package,mods = importlib.import_module(lib), modules(root, lib)
    site = Site(root/'nbs', out, read_pages(root/'nbs'), symbol_table(mods))
    for o in site.pages.values(): write_notebook(o, site)
    shutil.copy(THEME/'site.css', out/'site.css')
    home,*rest = site.pages.values()
    library = [nav_item(o) for o in rest if not o.src.startswith('examples/')]
    sections = {'Library': library, 'Examples': write_gallery(site), 'API': write_api(mods, inspect.getdoc(package) or '', site)}
    return [{'Home': home.dst}, *({k: v} for k,v in sections.items() if v)]

def asset_problems(
    page:Path, # In the built site
    soup:BeautifulSoup, # Its HTML
) -> list[str]:
    "What `page` would fetch from elsewhere"
    urls = [o.get('src') or o.get('href') or '' for o in soup(['script', 'link', 'img', 'iframe', 'source', 'video', 'object'])]
    code = ' '.join(o.text for o in soup(['style', 'script']))
    inline = re.findall(r'(?:@import|url\(|import\s[^;]*from)\s*["\']?(https?://[^"\')\s]+)', code)
    return [f'{page} fetches {o}' for o in [*urls, *inline] if re.match(r'(https?:)?//', o)]

def link_problems(
    page:Path, # In the built site
    soup:BeautifulSoup, # Its HTML
    ids:dict, # The anchors of all pages
) -> list[str]:
    "The links of `page` that lead nowhere"
    res = []
    for url in {o.get('href') or o.get('src') for o in soup(['a', 'img'])} - {None}:
        if re.match(r'[a-z]+:|//', url): continue
        path,anchor = map(unquote, urldefrag(url))
        target = Path(os.path.normpath(page.parent/path)) if path else page
        if target.is_dir(): target /= 'index.html'
        if not target.exists(): res.append(f'{page} links to {url}, which is not there')
        elif anchor and anchor not in ids.get(target, ()): res.append(f'{page} links to {url}, which has no such anchor')
    return res

def problems(
    out:Path, # The built site
) -> list[str]:
    "What keeps the site from working without a network: foreign assets and dead links"
    # 404.html has links from the root of a server, not from its folder
    soups = {o: BeautifulSoup(o.read_text(encoding='utf-8'), 'html.parser') for o in out.rglob('*.html') if o.name != '404.html'}
    ids = {page: {o['id'] for o in soup(id=True)} for page,soup in soups.items()}
    return [p for page,soup in soups.items() for p in (*asset_problems(page, soup), *link_problems(page, soup, ids))]

def build_site(
    root:Path, # The project
) -> Path: # The site
    "Build the site; raises `ValueError` if something in it leads nowhere or needs a network"
    parser = ConfigParser()
    parser.read(root/'settings.ini', encoding='utf-8')
    about,out = parser['DEFAULT'], root/'_docs'
    with tempfile.TemporaryDirectory() as sources:
        nav = write_sources(root, about['lib_name'], Path(sources))
        build(load_config(str(THEME/'mkdocs.yml'), docs_dir=sources, site_dir=str(out), nav=nav, strict=True,
                          site_name=about['lib_name'], site_description=about['description']))
    if found := problems(out): raise ValueError('The site is not in order:\n' + '\n'.join(found))
    return out

@call_parse
def main(
    root:Path=ROOT, # The project
    serve:bool=False, # Serve the site afterwards
    port:int=8000, # Where to serve it
):
    "Build the documentation site into _docs/ from the notebooks as they are committed, and from the package"
    logging.basicConfig(level=logging.WARNING, format='%(levelname)s: %(message)s')
    # Set before the theme and the package are imported, which read them then
    os.environ |= {'NO_MKDOCS_2_WARNING': '1', 'HF_HUB_OFFLINE': '1'}
    out = build_site(Path(root).resolve())
    print(f'{out} has {sum(o.name != "404.html" for o in out.rglob("*.html"))} pages')
    if not serve: return
    print(f'http://127.0.0.1:{port}')
    ThreadingHTTPServer(('127.0.0.1', port), partial(SimpleHTTPRequestHandler, directory=out)).serve_forever()
