-- Moves an in-flight list back to the head of its queue, in its old order, to be taken next.
--
-- KEYS: the agents by last-seen time, and for each list the list and its queue.
-- ARGV: how many messages at the most, how many bytes (one message at least); then, if the lists are those of an agent that
-- has gone: its SERVER_ID, for how many seconds it must have been, and nothing else. Its lease is the last of the KEYS then.
-- Returns the number moved and the number left.
-- The first write; see lease.lua.
redis.call('ZREM', KEYS[1], '')
local most, bytes, gone = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local last = #KEYS
if gone then
  last = last - 1
  local seen = redis.call('ZSCORE', KEYS[1], gone)
  local age = seen and redis.call('TIME')[1] - seen
  if not seen or age < tonumber(ARGV[4]) or redis.call('EXISTS', KEYS[#KEYS]) == 1 then return { 0, 0 } end
end
local moved, left = 0, 0
for n = 2, last, 2 do
  local from, to = KEYS[n], KEYS[n + 1]
  local kind, there = redis.call('TYPE', from).ok, redis.call('TYPE', to).ok
  if kind == 'list' and (there == 'list' or there == 'none') then
    -- Its newest is at the left; pushed to the right one by one, its oldest is the next to be taken.
    while moved < most and bytes > 0 do
      local message = redis.call('LMOVE', from, to, 'LEFT', 'RIGHT')
      if not message then break end
      moved = moved + 1
      bytes = bytes - #message
    end
    left = left + redis.call('LLEN', from)
  elseif kind == 'list' then
    left = left + redis.call('LLEN', from)
  end
end
if gone and left == 0 then redis.call('ZREM', KEYS[1], gone) end
return { moved, left }
