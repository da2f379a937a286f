-- One atomic round of the intake: acknowledge committed messages, take more, count the rest.
--
-- After lease.lua, whose KEYS and ARGV come first, and oversize.lua.
-- KEYS: for each queue the queue, this agent's in-flight list, its count of acknowledged messages, the list of
-- oversized messages, and the key that its blocking command names as the destination.
-- ARGV: for each queue how many to acknowledge, how many in-flight messages the agent knows beyond those, and how
-- many to take; then how many bytes to give out at the most (0: one message in all), and from how many bytes on a message
-- is not given out but moved.
--
-- The order of the queues matters: first lifecycle, then usage. Usage is taken only when no lifecycle event is left, so that
-- a session's `started` is never taken after its usage.
--
-- Messages are read a few at a time, first one and then more: reading copies them, and any may be huge.
local CHUNK = 16
-- The most that one command moves.
local SOME = 1000
-- Longer than a blocking command waits; this script renews the key before each.
local WAKEUP_MILLIS = '60000'
local give, limit = tonumber(ARGV[14]), tonumber(ARGV[15])
local single = give <= 0
local reply = {}
-- `ended`: this round returns no more. Moving an oversized message takes long enough.
local blocked, ended = false, false
for q = 0, 2 do
  local queue, inflight, acked, oversize, wakeup = unpack(KEYS, q * 5 + 3, q * 5 + 7)
  local ack, known, asked = tonumber(ARGV[q * 3 + 5]), tonumber(ARGV[q * 3 + 6]), tonumber(ARGV[q * 3 + 7])
  local fault = wrong(queue, inflight)
  local held = 0
  if wrong(inflight) == '' then held = redis.call('LLEN', inflight) end
  if held < ack + known then
    -- Another client took from it: the agent's count is no longer valid.
    return redis.error_reply('FENCED ' .. inflight .. ' was changed by somebody else')
  end
  if ack > 0 then
    -- The oldest are at the right.
    redis.call('LTRIM', inflight, 0, -(ack + 1))
    redis.call('INCRBY', acked, ack)
  end
  if fault ~= '' then
    reply[q + 1] = { fault, 0, {}, {} }
  else
    -- The key was deleted while the blocking command waited, which therefore moved a message.
    if redis.call('TYPE', wakeup).ok == 'list' then
      while redis.call('LMOVE', wakeup, inflight, 'RIGHT', 'LEFT') do held = held + 1 end
    end
    if asked > 0 then redis.call('SET', wakeup, '', 'PX', WAKEUP_MILLIS) end
    local want = asked
    if q == 1 and blocked then want = 0 end
    local unknown = held - ack - known
    local oldest_first, notes, given = {}, {}, 0
    -- At least one, so that large records of one queue do not starve another.
    local function wanted()
      return fault == '' and not ended and given < want and (given == 0 or give > 0)
    end
    local function give_out(message)
      given = given + 1
      give = give - #message
      oldest_first[given] = message
      if is_note(message) then notes[#notes + 1] = given end
      if single then ended = true end
    end
    -- Moves the oldest of a list, which is too large; `put` puts its note into the in-flight list.
    local function set_aside(from, put)
      fault = wrong(oversize)
      if fault == '' then
        local message = redis.call('LMOVE', from, oversize, 'RIGHT', 'LEFT')
        local note = note_on(message, oversize)
        redis.call(put, inflight, note)
        prolong_lease(#message)
        give_out(note)
        ended = true
      end
    end
    -- Gives out messages of a list, `skip` older ones left out, until one is too large or there is enough. Returns how many,
    -- and whether the next one is too large.
    local function give_from(list, skip, most)
      local chunk = redis.call('LRANGE', list, -(skip + most), -(skip + 1))
      local n = 0
      while n < #chunk and wanted() do
        local message = chunk[#chunk - n]
        if #message > limit then return n, true end
        give_out(message)
        n = n + 1
      end
      return n, false
    end
    local chunk = 1
    -- Messages in flight since a crash.
    while wanted() and given < unknown do
      local n, is_large = give_from(inflight, known + given, math.min(chunk, want - given, unknown - given))
      if is_large then
        -- It can only be moved from the end of the list, once all older ones are acknowledged.
        if known + given > 0 then break end
        free_memory()
        set_aside(inflight, 'RPUSH')
      end
      chunk = math.min(chunk * 2, CHUNK)
    end
    -- Messages in the queue: given out a few at a time, then moved by as few commands as there can be.
    while wanted() and given >= unknown do
      local n, is_large = 0, false
      repeat
        local more
        more, is_large = give_from(queue, n, math.min(chunk, want - given, SOME - n))
        n = n + more
        chunk = math.min(chunk * 2, CHUNK)
      until more == 0 or is_large or n == SOME or not wanted()
      if n > 0 then
        redis.call('LPUSH', inflight, unpack(oldest_first, given - n + 1, given))
        redis.call('LTRIM', queue, 0, -(n + 1))
        unknown = unknown + n
      end
      if is_large then
        free_memory()
        set_aside(queue, 'LPUSH')
        if fault == '' then unknown = unknown + 1 end
      elseif n == 0 then
        break
      end
    end
    local left = redis.call('LLEN', queue) + unknown - given
    if q == 0 and left > 0 then blocked = true end
    reply[q + 1] = { fault, left, oldest_first, notes }
  end
end
if ended then free_memory() end
return reply
