"""What the Redis store's scripts have in common: the keys, and what is done to them.

Keys (all begin with ``causerie:``):

- ``response:ID`` hash: the record, who runs it (``lease``), its ``outcome`` once it has ended; of one that expires
  ``after`` and ``while``: for how many milliseconds it is there from its end on, and from the last sign of its process
- ``events:ID`` stream: the event with number 7 has the id ``7-0``
- ``conversation:ID`` hash, ``order:ID`` sorted set and ``items:ID`` hash: a conversation and its items
- ``lease:NAME`` expires when its process stops renewing it; all that it was running may then be ended by anybody
- ``running`` hash: each running response's lease, but of those that expire
- ``followed:ID`` is there for a second after a process was told that another one reads its response
- ``oldest`` sorted set: what may be removed, by the time of its end or last change
- ``bytes``: size of it all, by the rules of ``grow``; ``schema``: its version
"""

from __future__ import annotations

from typing import Final

LIBRARY: Final = """
local P = 'causerie:'
local OLDEST, RUNNING, BYTES = P .. 'oldest', P .. 'running', P .. 'bytes'
local function response(id) return P .. 'response:' .. id end
local function events(id) return P .. 'events:' .. id end
local function conversation(id) return P .. 'conversation:' .. id end
local function order(id) return P .. 'order:' .. id end
local function items(id) return P .. 'items:' .. id end
local function alive(lease) return redis.call('EXISTS', P .. 'lease:' .. lease) == 1 end
local function get(key, ...) return unpack(redis.call('HMGET', key, ...)) end
local function size() return tonumber(redis.call('GET', BYTES) or '0') end

-- Nothing new begins in the last part of a full store: what runs has it to come to its end.
local function crowded(bound) return bound > 0 and size() > bound * 31 / 32 end

local function grow(key, bytes)
  redis.call('HINCRBY', key, 'bytes', bytes)
  redis.call('INCRBY', BYTES, bytes)
end

local function changed(c, now)
  local before, running = get(conversation(c), 'changed', 'running')
  if not before or tonumber(now) > tonumber(before) then
    redis.call('HSET', conversation(c), 'changed', now)
    before = now
  end
  if running then redis.call('ZREM', OLDEST, 'c:' .. c) else redis.call('ZADD', OLDEST, before, 'c:' .. c) end
end

local function add(c, id, item)
  redis.call('ZADD', order(c), redis.call('HINCRBY', conversation(c), 'last', 1), id)
  redis.call('HSET', items(c), id, item)
  grow(conversation(c), #id + #item + 128)
end

-- The first id of the pairs from ARGV[first] on that is taken.
local function taken(c, first)
  local seen = {}
  for i = first, #ARGV, 2 do
    if seen[ARGV[i]] or redis.call('HEXISTS', items(c), ARGV[i]) == 1 then return ARGV[i] end
    seen[ARGV[i]] = true
  end
end

local function add_all(c, first)
  for i = first, #ARGV, 2 do add(c, ARGV[i], ARGV[i + 1]) end
end

-- Put off its expiry, if it expires, to what it has in that phase from now on. What expires is not counted in the size:
-- nobody would take its bytes off again.
local function put_off(id, phase)
  local left = redis.call('HGET', response(id), phase)
  if not left then return false end
  redis.call('PEXPIRE', response(id), left)
  redis.call('PEXPIRE', events(id), left)
  return true
end

local function append(id, number, data)
  redis.call('XADD', events(id), number .. '-0', 'd', data)
  if not put_off(id, 'while') then grow(response(id), #data + 32) end
end

local function finish(id, outcome, ended, item)
  redis.call('HSET', response(id), 'outcome', outcome)
  if put_off(id, 'after') then return end
  redis.call('HDEL', RUNNING, id)
  redis.call('ZADD', OLDEST, ended, 'r:' .. id)
  grow(response(id), #outcome)
  local c, output = get(response(id), 'conversation', 'output')
  if c and redis.call('HGET', conversation(c), 'running') == id then
    redis.call('HDEL', conversation(c), 'running')
    if item ~= '' then add(c, output, item) end
    changed(c, ended)
  end
end

local function remove_response(id)
  local bytes, c = get(response(id), 'bytes', 'conversation')
  redis.call('DEL', response(id), events(id))
  redis.call('HDEL', RUNNING, id)
  redis.call('ZREM', OLDEST, 'r:' .. id)
  redis.call('DECRBY', BYTES, bytes or 0)
  if c and redis.call('HGET', conversation(c), 'running') == id then
    redis.call('HDEL', conversation(c), 'running')
    changed(c, '0')
  end
end

local function remove_conversation(c)
  local bytes = get(conversation(c), 'bytes')
  redis.call('DEL', conversation(c), order(c), items(c))
  redis.call('ZREM', OLDEST, 'c:' .. c)
  redis.call('DECRBY', BYTES, bytes)
end
"""
