// Whose token it is, remembered in nginx itself: what "njs" stands for in the benchmark. Not for
// production: it keeps tokens in clear, forgets nothing by age and takes any answer for good.

function resolve(r) {
    const authorization = r.headersIn.Authorization;
    const token = authorization && authorization.startsWith('Bearer ')
        ? authorization.slice(7)
        : r.variables.query_access_token;
    if (!token) {
        r.return(204);
        return;
    }
    // A service's token is several users', as whoami-router and its edge cache know.
    const uri = r.variables.request_uri;
    const key = uri.includes('user_id') ? `${r.variables.asserted_user_id} ${token}` : token;
    const user = ngx.shared.users.get(key);
    if (user === undefined) {
        ask(r, key, token);  // apart, so that what is remembered waits for no promise
        return;
    }
    answer(r, user);
}

async function ask(r, key, token) {
    const reply = await ngx.fetch(`http://${r.variables.bench_whoami}/_matrix/client/v3/account/whoami`, {
        headers: { Authorization: `Bearer ${token}` },
    });
    if (reply.status !== 200) {
        r.return(204);
        return;
    }
    const userId = (await reply.json()).user_id;
    const user = userId.slice(1, userId.indexOf(':'));
    ngx.shared.users.set(key, user);
    answer(r, user);
}

function answer(r, user) {
    r.headersOut['X-User-Identifier'] = user;
    r.return(204);
}

export default { resolve };
