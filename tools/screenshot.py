"""Take a screenshot of a model's page in a headless Chromium:

    python tools/screenshot.py my_model nbs/images/serve.png --text 'A film to see twice.'
"""
import shutil
from contextlib import contextmanager
from pathlib import Path

from fastcore.script import call_parse

BROWSERS = 'chromium', 'chromium-browser', 'google-chrome'

def find_browser() -> str|None:
    "Return the path of a Chromium, or None if there is none"
    return next(filter(None, map(shutil.which, BROWSERS)), None)

@contextmanager
def browser_page(
    size=(1100, 480), # Width and height of the window, in pixels
):
    "Open a page in a headless Chromium"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        # Chromium has no sandbox for root, and in a container little shared memory
        browser = p.chromium.launch(executable_path=find_browser(), args=['--no-sandbox', '--disable-dev-shm-usage'])
        try: yield browser.new_page(viewport=dict(width=size[0], height=size[1]))
        finally: browser.close()

def ask(
    page, # From `browser_page`
    url:str, # The address of the page
    values:dict, # The text to type in each box, by the label of the box
    button:str='Predict', # The label of the button
):
    "Open the page, type, click the button, and wait for the answer"
    page.goto(url)
    for name,text in values.items(): page.get_by_label(name, exact=True).fill(text)
    page.get_by_role('button', name=button, exact=True).click()
    page.wait_for_load_state('networkidle') # no request for half a second

@call_parse
def main(
    model:str, # A folder that save_pretrained wrote
    out:str, # The .png file to write
    text:str='A film to see twice.', # The text to type
    box:str='text', # The label of the box
    title:str=None, # The title of the page
):
    "Take a screenshot of a model's page"
    from blurlike.all import serve
    app = serve(model, wait=False, title=title)
    with browser_page() as page:
        ask(page, app.local_url, {box: text})
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=out)
    app.close(verbose=False)
