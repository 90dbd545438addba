"""A real `whet serve` on a free port of 127.0.0.1, ended by its pid; raw sockets to it."""
from common import *
import socket, time, signal, contextlib
@contextlib.contextmanager
def serving(space=None, config=None, keys=None, env=None, nofile=None, log=None, model="whet-pico", pythonpath=None, extra=()):
    e=os.environ|{"OMP_NUM_THREADS":"1","NUMBA_CACHE_DIR":str(ROOT/"numba")}|(env or {})
    if pythonpath: e["PYTHONPATH"]=pythonpath
    with socket.socket() as s: s.bind(("127.0.0.1",0)); port=s.getsockname()[1]
    args=[PY,"-m","whet","serve"]+([str(space)] if space else [])+(["--config",str(config)] if config else [])+(["--api-keys",str(keys)] if keys else [])+["--port",str(port),"--model",model,*extra]
    logf=open(log or ROOT/f"server-{port}.log","w+")
    pre=None
    if nofile:
        import resource
        pre=lambda: resource.setrlimit(resource.RLIMIT_NOFILE,(nofile,nofile))
    p=subprocess.Popen(args,stdout=logf,stderr=logf,env=e,preexec_fn=pre)
    try:
        t=time.time()
        while True:
            if p.poll() is not None: raise RuntimeError(open(logf.name).read()[-2000:])
            try:
                r=Req(port).go("GET","/health")
                if r.status==200: break
            except OSError: pass
            if time.time()-t>600: raise RuntimeError("no start")
            time.sleep(.2)
        yield S(port,p,logf.name)
    finally:
        p.send_signal(signal.SIGTERM)
        try: p.wait(20)
        except subprocess.TimeoutExpired: p.kill(); p.wait()
class S:
    def __init__(s,port,p,log): s.port,s.p,s.log=port,p,log
    def req(s,key=None,timeout=60): return Req(s.port,key,timeout)
    def logs(s): return open(s.log,errors="replace").read()
    def rss(s): return int([l for l in open(f"/proc/{s.p.pid}/status") if l.startswith("VmRSS")][0].split()[1])//1024
    def fds(s): return len(os.listdir(f"/proc/{s.p.pid}/fd"))
    def alive(s): return s.p.poll() is None
class R:
    def __init__(s,status,headers,body): s.status,s.headers,s.body=status,headers,body
    def json(s): return json.loads(s.body)
    def __repr__(s): return f"{s.status} {s.body[:160]!r}"
class Req:
    def __init__(s,port,key=None,timeout=60): s.port,s.key,s.timeout=port,key,timeout
    def go(s,method,path,body=None,headers=None,ctype="application/json"):
        import http.client
        c=http.client.HTTPConnection("127.0.0.1",s.port,timeout=s.timeout); h=dict(headers or {})
        if body is not None and not isinstance(body,(bytes,str)): body=json.dumps(body)
        if body is not None and ctype and "content-type" not in {k.lower() for k in h}: h["content-type"]=ctype
        if s.key: h["authorization"]="Bearer "+s.key
        c.request(method,path,body.encode() if isinstance(body,str) else body,h); r=c.getresponse(); out=R(r.status,{k.lower():v for k,v in r.getheaders()},r.read()); c.close(); return out
    def post(s,path,body,**k): return s.go("POST",path,body,**k)
    def get(s,path,**k): return s.go("GET",path,**k)
def raw(port,data,timeout=8,wait=True):
    s=socket.create_connection(("127.0.0.1",port),timeout=timeout); out=b""
    try:
        s.sendall(data)
        while wait and (b:=s.recv(65536)): out+=b
    except (TimeoutError,ConnectionResetError,BrokenPipeError) as e: out+=b"<"+type(e).__name__.encode()+b">"
    finally: s.close()
    return out
