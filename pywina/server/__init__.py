"""An HTTP server in OpenAI's form, and a page to try sparsity on: ``pywina serve``.

The extra ``pywina[server]`` (starlette, uvicorn). From outside in: ``protocol`` bounds what a
connection may do, ``checks`` decides who may ask, ``schema`` what may be asked, ``app`` holds the
routes, and ``engine`` runs requests in slots over one model.
"""
