"""What the Redis store does, as scripts: each runs in Redis as a whole, with nothing of anybody else's in between.

A script answers {'ok', …} or {the name of a refusal, an id or several}. It checks everything before it changes
anything, and makes room first where it removes: a Redis without memory takes nothing that comes first and may need
more.
"""

from __future__ import annotations

from typing import Final

from causerie.chat.stores.redis_library import LIBRARY

_BEGIN = """
local lease, bound, id, owner, previous, c, output, record, created, after, during, behind = unpack(ARGV, 1, 12)
if after == '' and crowded(tonumber(bound)) then return {'full', ''} end
if not alive(lease) then return {'lapsed', ''} end
if redis.call('EXISTS', response(id)) == 1 then return {'taken', id} end
if after ~= '' then
  redis.call('HSET', response(id), 'record', record, 'owner', owner, 'lease', lease, 'after', after, 'while', during)
  put_off(id, 'while')
  return {'ok'}
end
if c ~= '' then
  local its, running = get(conversation(c), 'owner', 'running')
  if its ~= owner then return {'no_conversation', c} end
  if running then return {'busy', c, running} end
  local last = redis.call('ZREVRANGE', order(c), 0, 0)[1] or ''
  if behind ~= '' and behind ~= '=' .. last then return {'busy', c} end
  local twice = taken(c, 13)
  if not twice and redis.call('HEXISTS', items(c), output) == 1 then twice = output end
  if twice then return {'taken', twice} end
  redis.call('HSET', conversation(c), 'running', id)
  add_all(c, 13)
  changed(c, created)
  redis.call('HSET', response(id), 'conversation', c)
end
if previous ~= '' then redis.call('HSET', response(id), 'previous', previous) end
redis.call('HSET', response(id), 'record', record, 'owner', owner, 'lease', lease, 'output', output)
redis.call('HSET', RUNNING, id, lease)
grow(response(id), #record + 4096)  -- Its stream takes that much from the first event on.
return {'ok'}
"""

# ARGV: lease, bound, then 'a', id, number, data or 'e', id, outcome, ended, item for each write.
_WRITE = """
local lease, bound = ARGV[1], tonumber(ARGV[2])
local there, last, counted, more, ended = {}, {}, {}, 0, {'ended'}
local i = 3
while i <= #ARGV do
  local id = ARGV[i + 1]
  if there[id] == nil then
    local its, outcome, expires = get(response(id), 'lease', 'outcome', 'after')
    there[id], counted[id] = its and true or false, not expires
    if its and (outcome or its ~= lease or not alive(lease)) then
      there[id] = false
      ended[#ended + 1] = id
    end
    last[id] = redis.call('XLEN', events(id))
  end
  if ARGV[i] == 'a' then
    if there[id] then
      last[id] = last[id] + 1
      if tonumber(ARGV[i + 2]) ~= last[id] then return {'gap', id} end
      if counted[id] then more = more + #ARGV[i + 3] end
    end
    i = i + 4
  else
    i = i + 5
  end
end
if #ended > 1 then return ended end
if bound > 0 and size() + more > bound then return {'full', ''} end
i = 3
while i <= #ARGV do
  local id = ARGV[i + 1]
  if ARGV[i] == 'a' then
    if there[id] then append(id, ARGV[i + 2], ARGV[i + 3]) end
    i = i + 4
  else
    if there[id] then finish(id, ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]) end
    i = i + 5
  end
end
return {'ok'}
"""

# Ends what a process ran that is gone, unless somebody else has, or it had written more than was read.
_INTERRUPT = """
local id, lease, number, data, outcome, ended, item = unpack(ARGV)
local its, already = get(response(id), 'lease', 'outcome')
if its ~= lease or already or alive(lease) then return {'ok', 1} end
if redis.call('XLEN', events(id)) + 1 ~= tonumber(number) then return {'ok', 0} end
append(id, number, data)
finish(id, outcome, ended, item)
return {'ok', 1}
"""

_RESPONSE = """
local owner, id = unpack(ARGV)
local its, record, outcome, lease = get(response(id), 'owner', 'record', 'outcome', 'lease')
if its ~= owner then return {'ok'} end
return {'ok', record, outcome, lease, redis.call('PTTL', P .. 'lease:' .. lease)}
"""

_EVENTS = """
local owner, id, after, follows = unpack(ARGV)
local its, outcome, lease = get(response(id), 'owner', 'outcome', 'lease')
if its ~= owner then return {'ok'} end
if follows == '1' and not outcome then
  local told = redis.pcall('SET', P .. 'followed:' .. id, '', 'PX', 1000, 'NX')  -- Reading needs no room.
  if told and told.ok then redis.call('PUBLISH', P .. 'followed:' .. lease:match('[^:]*'), id) end
end
local found = redis.call('XRANGE', events(id), string.format('%d-0', after + 1), '+')
return {'ok', found, outcome and 1 or 0, lease, redis.call('PTTL', P .. 'lease:' .. lease)}
"""

_CHAIN = """
local owner, id, most = unpack(ARGV)
local found = {'ok'}
while id and #found <= tonumber(most) do
  local its, record, outcome, lease, previous = get(response(id), 'owner', 'record', 'outcome', 'lease', 'previous')
  if its ~= owner then return {'no_previous', id} end
  found[#found + 1] = {record, outcome, not outcome and not alive(lease) and lease}
  id = previous
end
return found
"""

# ARGV: lease, then ids of responses that expire; answers those that it still runs.
_KEEP = """
local running = {'ok'}
for i = 2, #ARGV do
  local its, outcome = get(response(ARGV[i]), 'lease', 'outcome')
  if its == ARGV[1] and not outcome then
    put_off(ARGV[i], 'while')
    running[#running + 1] = ARGV[i]
  end
end
return running
"""

_DELETE_RESPONSE = """
local owner, id = unpack(ARGV)
if redis.call('HGET', response(id), 'owner') ~= owner then return {'ok', 0} end
remove_response(id)
return {'ok', 1}
"""

_CREATE_CONVERSATION = """
local bound, id, owner, record, metadata, created = unpack(ARGV, 1, 6)
if crowded(tonumber(bound)) then return {'full', ''} end
if redis.call('EXISTS', conversation(id)) == 1 then return {'taken', id} end
local twice = taken(id, 7)
if twice then return {'taken', twice} end
redis.call('HSET', conversation(id), 'record', record, 'owner', owner, 'metadata', metadata)
grow(conversation(id), #record + #metadata + 512)
add_all(id, 7)
changed(id, created)
return {'ok'}
"""

_CONVERSATION = """
local owner, id = unpack(ARGV)
local its, record, metadata = get(conversation(id), 'owner', 'record', 'metadata')
if its ~= owner then return {'ok'} end
return {'ok', record, metadata}
"""

_UPDATE_CONVERSATION = """
local owner, id, metadata = unpack(ARGV)
local its, record, before = get(conversation(id), 'owner', 'record', 'metadata')
if its ~= owner then return {'ok'} end
redis.call('HSET', conversation(id), 'metadata', metadata)
grow(conversation(id), #metadata - #before)
return {'ok', record, metadata}
"""

_DELETE_CONVERSATION = """
local owner, id = unpack(ARGV)
if redis.call('HGET', conversation(id), 'owner') ~= owner then return {'ok', 0} end
remove_conversation(id)
return {'ok', 1}
"""

_ITEMS = """
local owner, c, after, limit, newest_first = unpack(ARGV)
if redis.call('HGET', conversation(c), 'owner') ~= owner then return {'no_conversation', c} end
local reverse = newest_first == '1'
local first = 0
if after ~= '' then
  local rank = redis.call(reverse and 'ZREVRANK' or 'ZRANK', order(c), after)
  if not rank then return {'no_item', after} end
  first = rank + 1
end
local ids = redis.call(reverse and 'ZREVRANGE' or 'ZRANGE', order(c), first, first + tonumber(limit))
if #ids == 0 then return {'ok', ids, ids} end
return {'ok', ids, redis.call('HMGET', items(c), unpack(ids))}
"""

_ITEM = """
local owner, c, id = unpack(ARGV)
if redis.call('HGET', conversation(c), 'owner') ~= owner then return {'ok', false} end
return {'ok', redis.call('HGET', items(c), id)}
"""

_ADD_ITEMS = """
local bound, owner, c, now = unpack(ARGV, 1, 4)
if crowded(tonumber(bound)) then return {'full', ''} end
local its, running = get(conversation(c), 'owner', 'running')
if its ~= owner then return {'no_conversation', c} end
if running then return {'busy', c, running} end
local twice = taken(c, 5)
if twice then return {'taken', twice} end
add_all(c, 5)
changed(c, now)
return {'ok'}
"""

_DELETE_ITEM = """
local owner, c, id = unpack(ARGV)
local its, running = get(conversation(c), 'owner', 'running')
if its ~= owner then return {'no_conversation', c} end
if running then return {'busy', c, running} end
local item = redis.call('HGET', items(c), id)
if not item then return {'ok', 0} end
redis.call('HDEL', items(c), id)
redis.call('ZREM', order(c), id)
grow(conversation(c), -(#id + #item + 128))
return {'ok', 1}
"""

_SWEEP = """
local before, bound, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
for removed = 0, most - 1 do
  local name, score = unpack(redis.call('ZRANGE', OLDEST, 0, 0, 'WITHSCORES'))
  if not name then return {'ok', removed} end
  local too_large = bound >= 0 and size() > bound
  if tonumber(score) >= before and not too_large then return {'ok', removed} end
  if name:sub(1, 2) == 'r:' then remove_response(name:sub(3)) else remove_conversation(name:sub(3)) end
end
return {'ok', most}
"""

SCRIPTS: Final = {
    name: LIBRARY + script
    for name, script in {
        "begin": _BEGIN,
        "write": _WRITE,
        "interrupt": _INTERRUPT,
        "response": _RESPONSE,
        "events": _EVENTS,
        "chain": _CHAIN,
        "keep": _KEEP,
        "delete_response": _DELETE_RESPONSE,
        "create_conversation": _CREATE_CONVERSATION,
        "conversation": _CONVERSATION,
        "update_conversation": _UPDATE_CONVERSATION,
        "delete_conversation": _DELETE_CONVERSATION,
        "items": _ITEMS,
        "item": _ITEM,
        "add_items": _ADD_ITEMS,
        "delete_item": _DELETE_ITEM,
        "sweep": _SWEEP,
    }.items()
}
"""By name."""
