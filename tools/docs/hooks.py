"Fit the HTML of notebooks into the theme: its own colors and copy buttons, and nothing fetched from elsewhere"
from bs4 import BeautifulSoup
from markdown.extensions.toc import nest_toc_tokens
from mkdocs.structure.toc import get_toc

# Each page would carry the styles of JupyterLab, and scripts that load MathJax and Mermaid over the network
_dropped = 'style, script, .clipboard-copy-txt, .zeroclipboard-container, .jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser'

def headings(
    soup:BeautifulSoup, # The HTML of a page
) -> list: # As `get_toc` takes them
    "The headings that have an anchor; mkdocs-jupyter leaves out the code in them"
    return [dict(level=int(o.name[1]), id=o['id'], name=''.join(o.find_all(string=True)).rstrip('¶').strip(), children=[])
            for o in soup(['h1', 'h2', 'h3', 'h4']) if o.get('id')]

def on_page_content(
    html:str, # The HTML of a page
    page, # The page
    **kwargs
) -> str:
    "The HTML of a notebook with the markup of the theme"
    if not page.file.src_path.endswith('.ipynb'): return html
    soup = BeautifulSoup(html, 'html.parser')
    for o in soup.select(_dropped): o.decompose()
    for o in soup.select('.highlight-ipynb'): o['class'] = ['highlight']
    for o in soup.select('.highlight > pre'):
        code = soup.new_tag('code')
        code.extend(list(o.contents))
        o.append(code)
    for o in soup.select('a.anchor-link'): o['class'] = ['headerlink']
    page.toc = get_toc(nest_toc_tokens(headings(soup)))
    return str(soup)
