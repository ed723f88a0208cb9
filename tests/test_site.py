"The documentation site: links, the order of its pages, pictures of the examples, and how it looks in a browser."
import ast
import dataclasses
import inspect
import re
import sys
from functools import partial
from pathlib import Path

import fastai.text.all
import pytest
from bs4 import BeautifulSoup
from fastai.text.all import DataLoaders, Learner
from fastcore.nbio import dict2nb, read_nb
from transformers import Trainer, TrainingArguments

import blurlike.all
from blurlike.all import HFDataLoader, all_tasks, task_class
from blurlike.tasks.base import task_options

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'tools'))
docs = pytest.importorskip('docs', reason='needs mkdocs-material')
from screenshot import browser_page, find_browser  # noqa: E402

EXAMPLES = sorted(o.stem for o in (ROOT/'nbs'/'examples').glob('*.ipynb'))


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, whose build fails for dead links and for files from elsewhere"
    return docs.build_site(ROOT, tmp_path_factory.mktemp('site'))


def soup(path): return BeautifulSoup(path.read_text(encoding='utf-8'), 'html.parser')


# ---- links

def test_dead_links_and_files_from_elsewhere_are_reported(tmp_path):
    (tmp_path/'a.html').write_text('<h1 id="top"></h1><a href="b.html"></a><a href="#top"></a><a href="#end"></a>'
                                   '<img src="https://example.com/a.png"><a href="https://example.com"></a>')
    found = docs.problems(tmp_path)
    assert len(found)==3
    assert all(any(o in f for f in found) for o in ('b.html', '#end', 'https://example.com/a.png'))


# ---- examples

def test_the_gallery_has_each_example_and_each_task_with_a_picture(site):
    cards = {o['href']: o for o in soup(site/'examples'/'index.html')(class_='card')}
    tasks = {o.__module__.rpartition('.')[2] for o in all_tasks().values()}
    assert set(cards)=={f'../examples/{o}.html' for o in EXAMPLES} | {f'../tasks/{o}.html' for o in tasks}
    for url,o in cards.items():
        picture = o.find(class_='picture')
        assert picture.find(['img', 'table', 'pre']) or picture.find('span', style=True), f'no picture for {url}'
        assert o.find('strong').text, url
        assert o.find_all('span', recursive=False)[-1].text, f'no subtitle in {url}'


def test_an_example_that_is_not_listed_comes_last():
    pages = [docs.Page(Path(f'examples/{o}.md'), o, '', '', [], {}, '') for o in ('new', 'adapters')]
    sections = docs.example_sections(pages)
    assert {k: [o.title for o in v] for k,v in sections.items() if v}=={'Training': ['adapters'], 'More': ['new']}


RUN,TABLE,PREDICTIONS = '<table class="fastprogress">a</table>','<table>b</table>','<table><th>prediction</th></table>'


@pytest.mark.parametrize(('outputs', 'best'), [
    ([RUN, TABLE], 'b'), ([TABLE, PREDICTIONS, TABLE], 'prediction'), ([RUN, 'c\nd'], 'c\nd'), (['c\nd', TABLE], 'b'),
    (['one line', RUN], 'a'), (['c\nd', "Inferred task='x' from y\nNewly initialized in z\ne"], 'c\nd'), (['c'], '')])
def test_the_picture_is_the_best_output(outputs, best):
    data = [{'text/html' if '<' in o else 'text/plain': o} for o in outputs]
    outputs = [dict(output_type='execute_result', data=o) for o in data]
    nb = dict2nb(dict(cells=[dict(cell_type='code', source='', outputs=outputs)]))
    assert BeautifulSoup(docs.picture(nb, []), 'html.parser').text==best
    assert docs.picture(nb, ['a.png'])=='<img src="a.png" alt="">'


# ---- pages

def test_entry_points_come_first(site):
    page = soup(site/'train'/'learner.html')
    first = [o['href'] for o in page.find('article').find('table')('a')]
    assert first[0]=='#hf_learner'
    assert '#Learner.fit_linear' in first
    helpers = [o['href'] for o in page.find('article').find('details')('a')]
    assert '#default_callbacks' in helpers
    assert not {*first} & {*helpers}


@pytest.mark.parametrize(('name', 'expected'), [
    ('hf_learner', True), ('Learner.hf_predict', True), ('HFTextDataLoaders.from_csv', True), ('score', True),
    ('default_callbacks', False), ('HFTextDataLoaders.from_folder', False), ('Other.from_csv', False)])
def test_entry_points(name, expected):
    code = 'from blurlike.scale import score\nHFTextDataLoaders.from_csv(path, name)'
    assert docs.is_entry_point(name, code)==expected


def test_names_that_are_used_most_come_first():
    names = ['helper', 'build_model', 'hf_learner', 'Learner.fit']
    assert docs.sorted_names(names, 'hf_learner(dls)')==(['hf_learner', 'build_model', 'Learner.fit'], ['helper'])


def test_the_front_page_has_the_map_of_the_site(site):
    links = {o['href'] for o in soup(site/'index.html').find(class_='md-sidebar--primary')('a')}
    assert {'examples/index.html', 'reference.html', *(f'examples/{o}.html' for o in EXAMPLES)} <= links
    assert {o.relative_to(site).as_posix() for o in site.rglob('*.html')} - {'404.html', 'index.html'} <= links


# ---- the tables of those who come from another library

NAMESPACE = {'partial': partial, **vars(fastai.text.all), **vars(blurlike.all)}


def table_rows(example, heading=None):
    "The code in each column of the tables of an example, or of those below one heading"
    cells = read_nb(ROOT/'nbs'/'examples'/f'{example}.ipynb').cells
    text = '\n'.join(o.source for o in cells if o.cell_type=='markdown')
    for part in re.split(r'^## ', text, flags=re.MULTILINE):
        if heading and not part.startswith(heading): continue
        for row in re.findall(r'^\|(.+)\|$', part, re.MULTILINE)[2:]:
            yield [re.findall('`(.+?)`', o) for o in row.split(' | ')]


def calls(code):
    "The calls in a piece of code, which may be the head of a `with` block or a keyword without a value"
    try: tree = ast.parse(f'{code}: pass' if code.startswith('with ') else code)
    except SyntaxError: return []
    return [o for o in ast.walk(tree) if isinstance(o, ast.Call)]


def called(node):
    "What a call calls: a name of fastai or blurlike, or a method of a learner or of its data"
    if isinstance(node, ast.Name): return NAMESPACE[node.id]
    owner = ast.unparse(node.value)
    if owner=='learn': return getattr(Learner, node.attr)
    if owner not in ('dls', 'learn.dls'): return getattr(NAMESPACE[owner], node.attr)
    return getattr(DataLoaders, node.attr, None) or getattr(HFDataLoader, node.attr) # for the training loader


def unknown_arguments(call):
    "The keywords of a call that what it calls does not have"
    func = called(call.func)
    if func is partial: return set()
    params = inspect.signature(func).parameters
    if any(o.kind is o.VAR_KEYWORD for o in params.values()): return set()
    task = next((o.value.value for o in call.keywords if o.arg=='task'), None)
    return {o.arg for o in call.keywords} - {*params, *(task_options(task_class(task)) if task else ())}


@pytest.mark.parametrize('example', ['coming_from_blurr', 'coming_from_trainer'])
def test_the_new_calls_exist(example):
    codes = [code for row in table_rows(example) for code in row[1]]
    assert len(codes) > 30
    assert not {code: unknown for code in codes for o in calls(code) if (unknown := unknown_arguments(o))}


@pytest.mark.parametrize('code', ['hf_lerner(dls)', 'learn.predict_all()', 'dls.show()'])
def test_a_call_that_does_not_exist_is_found(code):
    with pytest.raises((KeyError, AttributeError)): unknown_arguments(*calls(code))


def test_an_argument_that_does_not_exist_is_found():
    assert unknown_arguments(*calls('hf_learner(dls, rate=1)'))=={'rate'}
    code = 'HFTextDataLoaders.from_df(df, name, task="causal-lm", masking="bert")'
    assert unknown_arguments(*calls(code))=={'masking'}


def test_each_argument_of_the_trainer_exists():
    fields = {o.name for o in dataclasses.fields(TrainingArguments)}
    codes = [code for row in table_rows('coming_from_trainer', 'TrainingArguments') for code in row[0]]
    names = [re.match(r'\w+', o)[0] for o in codes]
    assert len(names) > 30
    assert not {*names} - fields
    params = inspect.signature(Trainer.__init__).parameters
    names = [code[:-1] for row in table_rows('coming_from_trainer', 'The data and the model') for code in row[0]
             if code.endswith('=') and '2' not in code]
    assert len(names) > 8
    assert not {*names} - {*params}


# ---- in a browser

needs_browser = pytest.mark.skipif(find_browser() is None, reason='needs Chromium: apt-get install chromium')
PAGES = 'index.html', 'examples/index.html', 'examples/architectures.html', 'train/learner.html', 'reference.html'


@needs_browser
@pytest.mark.parametrize('width', [390, 1440])
def test_pages_fit_the_window(site, width):
    with browser_page((width, 900)) as page:
        for o in PAGES:
            page.goto((site/o).as_uri())
            assert page.evaluate('document.documentElement.scrollWidth')<=width, o


@needs_browser
def test_code_is_clear_of_the_copy_button(site):
    with browser_page((390, 900)) as page:
        page.goto((site/'index.html').as_uri())
        page.wait_for_selector('.md-code__nav')
        below = page.evaluate("""[...document.querySelectorAll('pre:has(> .md-code__nav)')].filter(o => {
            const [nav, code] = ['.md-code__nav', 'code'].map(s => o.querySelector(s).getBoundingClientRect())
            return nav.width && code.right > nav.left }).length""")
        assert below==0


@needs_browser
def test_a_wide_table_shows_that_it_scrolls(site):
    with browser_page((390, 900)) as page:
        page.goto((site/'examples'/'architectures.html').as_uri())
        page.wait_for_selector('.md-typeset__scrollwrap')
        wide,hint = page.evaluate("""[...document.querySelectorAll('.md-typeset__scrollwrap')].map(o =>
            [o.scrollWidth > o.clientWidth, getComputedStyle(o).backgroundImage.split('gradient').length-1])""")[0]
        assert wide
        assert hint==4
