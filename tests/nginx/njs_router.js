// A router inside nginx, as those before whoami-router: it asks whoami for each request, and what it
// answers in the header is the localpart.

async function route(r) {
    const token = (r.headersIn.Authorization || '').replace('Bearer ', '');
    const reply = await ngx.fetch(`http://${r.variables.synapse}/_matrix/client/v3/account/whoami`, {
        headers: { Authorization: `Bearer ${token}` },
    });
    const userId = (await reply.json()).user_id;
    r.headersOut['X-User-Identifier'] = userId.slice(1, userId.indexOf(':'));
    r.return(200);
}

export default { route };
