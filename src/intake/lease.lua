-- Precedes every script that works on this agent's keys.
--
-- KEYS: the lease, the agents by when they were last seen. ARGV: what the lease holds, for how many milliseconds,
-- SERVER_ID, and what the lease is to hold from now on.
--
-- The first write, and it changes nothing. Redis refuses a write that takes memory when it has none left, but not within a
-- script that has written already: acknowledging gives memory back and must not be refused. A read-only replica says
-- so here, before anything is done.
redis.call('ZREM', KEYS[2], '')
-- An agent that lost the lease has lost its position in the in-flight lists as well, and must not touch them before it has
-- looked again. So a late call that its agent gave up does nothing. Nor does one that arrives twice: nobody would know what
-- it returned the first time.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('FENCED the lease of this SERVER_ID is held otherwise, or has ended')
end
local now = redis.call('TIME')
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], now[1], ARGV[3])
