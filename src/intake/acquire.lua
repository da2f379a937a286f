-- Takes the lease of a SERVER_ID, if it is free or this outbox's already.
--
-- KEYS: the lease, the agents by when they were last seen. ARGV: the outbox, what the lease is to hold, milliseconds, SERVER_ID.
-- Returns nothing, or who holds it.
-- The first write; see lease.lua.
redis.call('ZREM', KEYS[2], '')
local holder = redis.call('GET', KEYS[1])
if holder and string.sub(holder, 1, #ARGV[1] + 1) ~= ARGV[1] .. '/' then
  return holder
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], redis.call('TIME')[1], ARGV[4])
return false
