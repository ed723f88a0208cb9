"""A small Hub on loopback: the part of its API that models are pushed and pulled through, over real HTTP.

A repository has commits, each a mapping of paths to blobs, and branches that point at commits. Large files and weights
go through the batch API of git LFS. `faults` makes the next requests whose path contains a string fail."""
import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = ('.safetensors', '.pkl', '.bin', '.onnx')


class Blob:
    "A file's bytes, and the names that git and LFS give them"
    def __init__(self, data, lfs):
        self.data,self.lfs = data,lfs
        self.git_oid = hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()
        self.sha256 = hashlib.sha256(data).hexdigest()

    @property
    def etag(self): return self.sha256 if self.lfs else self.git_oid


class Repo:
    "Commits and branches"
    def __init__(self, private):
        self.private,self.commits,self.refs,self.log = private,{},{},[]
        self.commit('main', {}, 'initial commit')

    def commit(self, ref, files, message):
        sha = hashlib.sha1(f'{len(self.commits)}{sorted((k, v.etag) for k,v in files.items())}'.encode()).hexdigest()
        self.commits[sha],self.refs[ref] = files,sha
        self.log.append((ref, message))
        return sha

    def sha(self, revision): return self.refs.get(revision, revision if revision in self.commits else None)


class Refusal(Exception):
    "An answer with a status other than 200, as the Hub puts it"
    def __init__(self, status, message, code=None): self.status,self.message,self.code = status,message,code


class Hub:
    "The repositories, the users, and what was asked of them"
    def __init__(self):
        self.repos,self.tokens,self.blobs = {},{'hf_ada': ('ada', True), 'hf_bob': ('bob', True),
                                                'hf_reader': ('ada', False)},{}
        self.requests,self.faults,self.lock = [],[],threading.Lock()

    def repo(self, kind, name, user, write=False):
        repo = self.repos.get((kind, name))
        owner = name.split('/')[0]
        if repo is None or (repo.private and (user is None or user[0] != owner)):
            raise Refusal(404 if user else 401, 'Repository not found', 'RepoNotFound')
        if write and (user is None or user[0] != owner or not user[1]):
            raise Refusal(403 if user else 401, 'Forbidden: you have no write access to this repository')
        return repo


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    @property
    def hub(self): return self.server.hub

    def do_GET(self): self.answer()
    def do_HEAD(self): self.answer()
    def do_POST(self): self.answer()
    def do_PUT(self): self.answer()

    def answer(self):
        url = urlsplit(self.path)
        path,self.query = unquote(url.path),parse_qs(url.query)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            fault = next((o for o in self.hub.faults if o[0] in path and (len(o) < 3 or o[2]==self.command)), None)
            if fault: self.hub.faults.remove(fault)
        try:
            if fault and fault[1]=='cut': return self.cut()
            chunked = 'chunked' in self.headers.get('Transfer-Encoding', '')
            self.body = self.chunks() if chunked else self.rfile.read(int(self.headers.get('Content-Length') or 0))
            if fault: raise Refusal(fault[1], 'The server fails for this test')
            for method,pattern,handle in ROUTES:
                if method==self.command.replace('HEAD', 'GET') and (m := re.fullmatch(pattern, path)):
                    return handle(self, *m.groups())
            raise Refusal(404, f'no such path: {path}')
        except Refusal as e: self.send(e.status, {'error': e.message},
                                       {'X-Error-Message': e.message} | ({'X-Error-Code': e.code} if e.code else {}))

    def cut(self):
        "Read a part of what is sent, and close the connection"
        self.rfile.read(min(100, int(self.headers.get('Content-Length') or 0)))
        self.close_connection = True
        self.connection.close()

    def chunks(self):
        data = b''
        while n := int(self.rfile.readline(), 16): data += self.rfile.read(n); self.rfile.readline()
        self.rfile.readline()
        return data

    def send(self, status, body, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for k,v in ({'Content-Length': len(data), 'Content-Type': 'application/json'} | dict(headers)).items():
            self.send_header(k, str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(data)

    def user(self, needed=False):
        token = (self.headers.get('Authorization') or '').removeprefix('Bearer ')
        if token and token not in self.hub.tokens: raise Refusal(401, 'Invalid credentials in Authorization header')
        if not token and needed: raise Refusal(401, 'Authentication is needed')
        return self.hub.tokens.get(token)

    def json(self): return json.loads(self.body)

    # --- What can be asked

    def create(self):
        user,ask = self.user(needed=True),self.json()
        owner,kind = ask.get('organization') or user[0],ask.get('type') or 'model'
        name = f"{owner}/{ask['name']}"
        if kind=='space' and not ask.get('sdk'): raise Refusal(400, '"sdk" is required for a Space')
        if owner != user[0] or not user[1]:
            raise Refusal(403, f'Forbidden: you have no rights to create a repository under {owner}')
        url = f'{self.server.url}/{name}'
        if (kind, name) in self.hub.repos: return self.send(409, {'error': 'You already created this repo', 'url': url})
        self.hub.repos[kind, name] = Repo(bool(ask.get('private')) or ask.get('visibility')=='private')
        self.send(200, dict(url=url, name=name, id=name))

    def preupload(self, kind, name, revision):
        repo = self.hub.repo(kind, name, self.user(), write=True)
        files = repo.commits[repo.sha(revision)]
        def one(o):
            lfs = o['path'].endswith(LFS_SUFFIXES) or o['size'] > 10_000_000
            there = files.get(o['path'])
            return dict(path=o['path'], uploadMode='lfs' if lfs else 'regular', shouldIgnore=False,
                        oid=there.etag if there else None)
        self.send(200, dict(files=[one(o) for o in self.json()['files']]))

    def lfs_batch(self, kind, name):
        self.hub.repo(kind or 'model', name, self.user(), write=True)
        def one(o):
            if o['oid'] in self.hub.blobs: return o
            return o | dict(actions=dict(upload=dict(href=f"{self.server.url}/lfs/{o['oid']}"),
                                         verify=dict(href=f'{self.server.url}/lfs-verify')))
        self.send(200, dict(transfer='basic', objects=[one(o) for o in self.json()['objects']]),
                  {'Content-Type': 'application/vnd.git-lfs+json'})

    def lfs_put(self, oid):
        blob = Blob(self.body, True)
        if blob.sha256 != oid: raise Refusal(400, 'The content is not what was announced')
        self.hub.blobs[oid] = blob
        self.send(200, {})

    def lfs_verify(self):
        if self.json()['oid'] not in self.hub.blobs: raise Refusal(404, 'Nothing was uploaded')
        self.send(200, {})

    def commit(self, kind, name, revision):
        repo = self.hub.repo(kind, name, self.user(), write=True)
        lines = [json.loads(o) for o in self.body.decode().splitlines() if o.strip()]
        files = dict(repo.commits[repo.sha(revision)])
        for o in lines:
            v = o['value']
            if o['key']=='file': files[v['path']] = Blob(base64.b64decode(v['content']), False)
            elif o['key']=='lfsFile':
                if v['oid'] not in self.hub.blobs: raise Refusal(400, f"LFS file {v['path']} was not uploaded")
                files[v['path']] = self.hub.blobs[v['oid']]
            elif o['key']=='deletedFile': files.pop(v['path'])
        n = sum(o.startswith('refs/pr/') for o in repo.refs) + 1
        pr = bool(self.query.get('create_pr'))
        sha = repo.commit(f'refs/pr/{n}' if pr else revision, files, lines[0]['value']['summary'])
        url = f'{self.server.url}/{name}'
        request = dict(pullRequestUrl=f'{url}/discussions/{n}') if pr else {}
        self.send(200, dict(success=True, commitOid=sha, commitUrl=f'{url}/commit/{sha}', hookOutput='') | request)

    def files(self, kind, name, revision):
        repo = self.hub.repo(kind, name, self.user())
        sha = repo.sha(revision or 'main')
        if sha is None: raise Refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return repo,sha,repo.commits[sha]

    def info(self, kind, name, revision=None):
        repo,sha,files = self.files(kind, name, revision)
        self.send(200, dict(id=name, modelId=name, sha=sha, private=repo.private,
                            siblings=[dict(rfilename=o) for o in sorted(files)], tags=[], downloads=0, likes=0))

    def tree(self, kind, name, revision):
        *_,files = self.files(kind, name, revision)
        def one(path, blob):
            lfs = dict(lfs=dict(oid=blob.sha256, size=len(blob.data), pointerSize=100)) if blob.lfs else {}
            return dict(type='file', path=path, size=len(blob.data), oid=blob.git_oid) | lfs
        self.send(200, [one(*o) for o in sorted(files.items())])

    def resolve(self, kind, name, revision, path):
        _,sha,files = self.files(kind or 'model', name, revision)
        if path not in files: raise Refusal(404, 'Entry not found', 'EntryNotFound')
        blob = files[path]
        headers = {'ETag': f'"{blob.etag}"', 'X-Repo-Commit': sha, 'Content-Type': 'application/octet-stream',
                   'Accept-Ranges': 'bytes'}
        if blob.lfs: headers |= {'X-Linked-Etag': f'"{blob.etag}"', 'X-Linked-Size': len(blob.data)}
        start = int((re.match(r'bytes=(\d+)-', self.headers.get('Range', '')) or [0, 0])[1])
        self.send(206 if start else 200, blob.data[start:], headers)

    def branch(self, kind, name, branch):
        repo = self.hub.repo(kind, name, self.user(needed=True), write=True)
        if branch in repo.refs: raise Refusal(409, 'Reference already exists')
        repo.refs[branch] = repo.refs['main']
        self.send(200, {})

    def whoami(self): self.send(200, dict(name=self.user(needed=True)[0], type='user', orgs=[],
                                          auth={'accessToken': {'role': 'write'}}))

    def validate_yaml(self):
        meta = re.match(r'---\n(.*?)\n---', self.json()['content'], re.S)
        if meta is None:
            return self.send(200,
                             dict(errors=[], warnings=[dict(message='empty or missing yaml metadata in repo card')]))
        problems = card_problems(yaml.safe_load(meta[1]))
        if problems: raise Refusal(400, '; '.join(problems))
        self.send(200, dict(errors=[], warnings=[]))


def card_problems(meta):
    "What the Hub would say against a card's metadata"
    if not isinstance(meta, dict): return ['no metadata']
    problems = [f'"{k}" must be a string' for k in ('library_name', 'pipeline_tag', 'license') if k in meta
                and not isinstance(meta[k], str)]
    problems += [f'"{k}" must be a list of strings' for k in ('tags', 'metrics') if k in meta
                 and not all(isinstance(o, str) for o in meta[k])]
    for entry in meta.get('model-index', []):
        for o in entry.get('results', [{}]):
            task,dataset = o.get('task', {}),o.get('dataset', {})
            if not all((entry.get('name'), task.get('type'), dataset.get('type'), dataset.get('name'))):
                problems.append('"model-index" is incomplete')
            if not all(m.get('type') and 'value' in m for m in o.get('metrics', [{}])):
                problems.append('"model-index" has a metric without a value')
    return problems


_REPO,_REV = r'(model|dataset|space)s/([^/]+/[^/]+)',r'([^/]+|refs/pr/\d+)'
ROUTES = [
    ('POST', '/api/repos/create', Handler.create), ('GET', '/api/whoami-v2', Handler.whoami),
    ('POST', '/api/validate-yaml', Handler.validate_yaml),
    ('POST', f'/api/{_REPO}/preupload/{_REV}', Handler.preupload),
    ('POST', f'/api/{_REPO}/commit/{_REV}', Handler.commit), ('POST', f'/api/{_REPO}/branch/{_REV}', Handler.branch),
    ('GET', f'/api/{_REPO}/revision/{_REV}', Handler.info), ('GET', f'/api/{_REPO}/tree/{_REV}', Handler.tree),
    ('GET', f'/api/{_REPO}', Handler.info),
    ('POST', r'/(?:(space|dataset)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch', Handler.lfs_batch),
    ('PUT', '/lfs/([0-9a-f]{64})', Handler.lfs_put), ('POST', '/lfs-verify', Handler.lfs_verify),
    ('GET', f'/(?:(space|dataset)s/)?([^/]+/[^/]+)/resolve/{_REV}/(.+)', Handler.resolve),
]


@contextmanager
def serving():
    "A Hub that serves on loopback; yields it, with its `url`"
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    server.hub,server.url = Hub(),f'http://127.0.0.1:{server.server_port}'
    server.hub.url = server.url
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try: yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
