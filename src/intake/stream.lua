-- One round of the intake from streams, atomic: acknowledge what is committed, take more, say what is left.
--
-- After lease.lua, whose KEYS and ARGV come first, and oversize.lua.
-- KEYS: for each of the three streams, or in a cluster for one, the stream and the list of oversized messages.
-- ARGV: the group, the consumer, how many bytes to give out at the most (0: one entry in all), and from how many bytes on
-- an entry is not given out but moved; then for each stream how many to take, where to read on in what this consumer has
-- been given already ('' when that is done), for how many milliseconds an entry must lie with a consumer to be taken from
-- it (0: leave them), how many entries to acknowledge, and their ids.
--
-- The order of the streams matters as in list.lua, and entries are read a few at a time as there.
-- Returns for each stream: a fault, what is left, the last id that the group was given, where the reading of what was given
-- before has come to, the entries, whether those named were acknowledged, and how many were trimmed before they could be
-- claimed. Of the entries each id is followed by the message; a table of a note alone; a table of all fields if none is
-- `data`; or nil if the entry was trimmed. They are flat because a table for each costs Redis as much as reading the entry.
local CHUNK = 16
local SOME = 1000
local group, consumer, room, limit = ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local single = room <= 0
local reply = {}
-- `ended`: nothing more is given out in this round. Moving an oversized entry takes long enough.
local blocked, ended = false, false
local at = 9

-- What is given out of an entry's fields, and its size: its `data`, a table of a note alone, or all fields.
local function read(fields)
  local size = 0
  for n = 1, #fields, 2 do
    if fields[n] == 'data' then return fields[n + 1], #fields[n + 1] end
    size = size + #fields[n] + #fields[n + 1]
  end
  if size <= limit and #fields == 2 and fields[1] == 'oversize' and is_note(fields[2]) then
    return { fields[2] }, size
  end
  return fields, size
end

-- The message of an entry that is too large to be given out.
local function message_of(given)
  if type(given) == 'string' then return given end
  local all = {}
  for n = 1, #given, 2 do all[given[n]] = given[n + 1] end
  return cjson.encode(all)
end

for q = 0, #KEYS / 2 - 2 do
  local stream, oversize = KEYS[q * 2 + 3], KEYS[q * 2 + 4]
  local want, from, idle, acks = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  at = at + 4
  local acked_from, acked_to = at, at + acks - 1
  at = at + acks
  local kind = redis.call('TYPE', stream).ok
  if kind ~= 'stream' and kind ~= 'none' then
    reply[q + 1] = { 'a key of type ' .. kind .. ' stands where a stream belongs', 0, '0-0', from, {}, 0, 0 }
  else
    -- A stream or group that is not there, or vanished, is made, from its beginning.
    if redis.pcall('XPENDING', stream, group).err then
      redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
    end
    for n = acked_from, acked_to, SOME do
      local to = math.min(n + SOME - 1, acked_to)
      redis.call('XACK', stream, group, unpack(ARGV, n, to))
      redis.call('XDEL', stream, unpack(ARGV, n, to))
    end
    local entries, count, fault, trimmed = {}, 0, '', 0
    if q == 1 and blocked then want = 0 end
    -- One at least, so that large records of one stream leave none of another behind.
    local function wanted()
      return fault == '' and not ended and count < want and (count == 0 or room > 0)
    end
    local function give_out(id, fields)
      local given, size = false, 0
      if fields then given, size = read(fields) end
      if size > limit then
        fault = wrong(oversize)
        if fault ~= '' then return false end
        ended = true
        local large = message_of(given)
        redis.call('LPUSH', oversize, large)
        redis.call('XADD', stream, '*', 'oversize', note_on(large, oversize))
        redis.call('XACK', stream, group, id)
        redis.call('XDEL', stream, id)
        prolong_lease(#large)
        return true
      end
      count, room = count + 1, room - size
      entries[count * 2 - 1], entries[count * 2] = id, given
      if single then ended = true end
      return true
    end
    local chunk = 1
    -- Reads some and gives them out. What is not given out is this consumer's all the same: `from` is set to where the next
    -- round reads on. False if there was nothing.
    local function read_from(place)
      local found = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', math.min(chunk, want - count),
        'STREAMS', stream, place)
      if not found or #found[1][2] == 0 then return false end
      chunk = math.min(chunk * 2, CHUNK)
      local last = place
      if last == '>' then last = '0' end
      for n, entry in ipairs(found[1][2]) do
        if n > 1 and not wanted() or not give_out(entry[1], entry[2]) then
          from = last
          return true
        end
        last = entry[1]
      end
      if place ~= '>' or ended then from = last end
      return true
    end
    -- What others were given and have not acknowledged for long becomes this consumer's, to be read with all that is.
    if idle > 0 and want > 0 then
      local cursor, claimed = '0-0', 0
      repeat
        local answer = redis.call('XAUTOCLAIM', stream, group, consumer, idle, cursor, 'COUNT', want, 'JUSTID')
        claimed = claimed + #answer[2]
        -- Redis 7 drops what is gone from the stream; before, it is found when it is read.
        trimmed = trimmed + #(answer[3] or {})
        cursor = answer[1]
      until cursor == '0-0' or claimed >= want
      if claimed > 0 then from = '0' end
    end
    -- Entries this consumer was given before and has not acknowledged.
    while from ~= '' and wanted() do
      if not read_from(from) then from = '' end
    end
    -- New entries.
    local dry = false
    while from == '' and wanted() do
      if not read_from('>') then
        dry = true
        break
      end
    end
    -- What names no entry, as XINFO STREAM does.
    local last = '0-0'
    for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
      local is_ours, delivered = false, '0-0'
      for n = 1, #info, 2 do
        if info[n] == 'name' then is_ours = info[n + 1] == group end
        if info[n] == 'last-delivered-id' then delivered = info[n + 1] end
      end
      if is_ours then last = delivered end
    end
    -- Acknowledged entries are deleted, so that the stream holds what is pending and what is left.
    local pending = redis.call('XPENDING', stream, group)
    local left = math.max(redis.call('XLEN', stream) - pending[1], 0)
    -- Other entries, that somebody acknowledged and did not delete, are given to nobody any more: nothing waits for them.
    if dry then left = 0 end
    if from ~= '' then
      -- Some of what this consumer was given before is not in hand yet: at the most so much.
      for _, of in ipairs(pending[4] or {}) do
        if of[1] == consumer then left = left + of[2] end
      end
    end
    if q == 0 and (left > 0 or from ~= '') then blocked = true end
    reply[q + 1] = { fault, left, last, from, entries, 1, trimmed }
  end
end
if ended then free_memory() end
return reply
