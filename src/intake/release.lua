-- Gives the lease up, if it is still held. An agent that leaves nothing behind is not missed.
--
-- KEYS: the lease, the agents by when they were last seen, the in-flight lists (none: there are no such lists).
-- ARGV: who holds the lease, SERVER_ID.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
for n = 3, #KEYS do
  if redis.call('EXISTS', KEYS[n]) == 1 then return 1 end
end
redis.call('ZREM', KEYS[2], ARGV[2])
return 1
