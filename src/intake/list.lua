-- One round of the intake, atomic: acknowledge what is committed, take more, say what is left.
--
-- After lease.lua, whose KEYS and ARGV come first.
-- KEYS: for each queue the queue, this agent's in-flight list, and its count of acknowledged messages.
-- ARGV: for each queue how many to acknowledge, how many in-flight messages the agent knows beyond those, and how
-- many to take; then how many bytes to give out at the most.
--
-- The order of the queues matters: the first is lifecycle, the second usage. Usage is taken only when no lifecycle
-- event is left behind, so that a session's `started` is never taken after its usage.
local CHUNK = 64
local reply = {}
local blocked = false
-- What is given out at the most, in bytes.
local give = tonumber(ARGV[14])
for q = 0, 2 do
  local queue, inflight, acked = KEYS[q * 3 + 3], KEYS[q * 3 + 4], KEYS[q * 3 + 5]
  local ack, known, want = tonumber(ARGV[q * 3 + 5]), tonumber(ARGV[q * 3 + 6]), tonumber(ARGV[q * 3 + 7])
  local kind = redis.call('TYPE', queue).ok
  local mine = redis.call('TYPE', inflight).ok
  local fault = ''
  for _, found in ipairs({ kind, mine }) do
    if found ~= 'list' and found ~= 'none' then fault = 'a key of type ' .. found .. ' stands where a list belongs' end
  end
  local held = 0
  if mine == 'list' then held = redis.call('LLEN', inflight) end
  if held < ack + known then
    -- Somebody else took from it: what the agent counts from is not there any more.
    return redis.error_reply('FENCED ' .. inflight .. ' was changed by somebody else')
  end
  if ack > 0 then
    -- The oldest are at the right.
    redis.call('LTRIM', inflight, 0, -(ack + 1))
    redis.call('INCRBY', acked, ack)
  end
  if fault ~= '' then
    reply[q + 1] = { fault, 0, {} }
  else
    if q == 1 and blocked then want = 0 end
    local unknown = held - ack - known
    local oldest_first, given = {}, 0
    -- One at least, however large it is; what is not given out is left for the next round.
    local function give_out(chunk)
      for i = #chunk, 1, -1 do
        if given > 0 and give <= 0 then break end
        given = given + 1
        oldest_first[given] = chunk[i]
        give = give - #chunk[i]
      end
    end
    -- What has lain in flight since a crash, or came by an alarm, or with a chunk that was not given out to its end.
    local most = math.min(unknown, want)
    while given < most and (given == 0 or give > 0) do
      local n = math.min(CHUNK, most - given)
      give_out(redis.call('LRANGE', inflight, -(known + given + n), -(known + given + 1)))
    end
    -- What is in the queue: one at least here as well, so that large records of one queue leave none of another behind.
    while given == unknown and unknown < want and (given == 0 or give > 0) do
      local chunk = redis.call('LRANGE', queue, -math.min(CHUNK, want - unknown), -1)
      local n = #chunk
      if n == 0 then break end
      local moved = {}
      for i = n, 1, -1 do moved[n - i + 1] = chunk[i] end
      redis.call('LPUSH', inflight, unpack(moved))
      redis.call('LTRIM', queue, 0, -(n + 1))
      unknown = unknown + n
      give_out(chunk)
    end
    local left = redis.call('LLEN', queue) + unknown - given
    if q == 0 and left > 0 then blocked = true end
    reply[q + 1] = { '', left, oldest_first }
  end
end
return reply
