-- Whose token it is, remembered in nginx itself: what "Lua" stands for in the benchmark. Not for
-- production: it keeps tokens in clear, forgets nothing by age and takes any answer for good.

local authorization = ngx.var.http_authorization
local token
if authorization and authorization:sub(1, 7) == "Bearer " then
    token = authorization:sub(8)
else
    token = ngx.var.query_access_token
end
if not token or token == "" then
    return ngx.exit(204)
end

-- A service's token is several users', as whoami-router and its edge cache know.
local key = token
if ngx.var.request_uri:find("user_id", 1, true) then
    key = ngx.var.asserted_user_id .. " " .. token
end
local users = ngx.shared.users
local user = users:get(key)
if not user then
    local reply = ngx.location.capture("/bench/whoami")
    user = reply.status == 200 and reply.body:match('"user_id":"@([^:"]+):')
    if not user then
        return ngx.exit(204)
    end
    users:set(key, user)
end
ngx.header["X-User-Identifier"] = user
return ngx.exit(204)
