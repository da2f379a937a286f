-- One round of the intake from streams, atomic: acknowledge what is committed, take more, say what is left.
--
-- After lease.lua, whose KEYS and ARGV come first.
-- KEYS: the three streams, or in a cluster one. ARGV: the group, the consumer, how many bytes to take at the most; then for each stream how
-- many to take, where to read on in what this consumer has been given already ('' when that is done), for how many
-- milliseconds an entry must lie with a consumer to be taken from it (0: leave them), how many entries to
-- acknowledge, and their ids.
--
-- The order of the streams matters as in list.lua.
-- Returns for each stream: a fault, what is left, the last id, where the reading of what was given before has come
-- to, and the entries; one that was given before but is gone has no fields.
local CHUNK = 64
local SOME = 1000
local group, consumer, room = ARGV[5], ARGV[6], tonumber(ARGV[7])
local reply = {}
local blocked = false
local at = 8
for q = 0, #KEYS - 3 do
  local stream = KEYS[q + 3]
  local want, from, idle, acks = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local ids = {}
  for n = 1, acks do ids[n] = ARGV[at + 3 + n] end
  at = at + 4 + acks
  local kind = redis.call('TYPE', stream).ok
  if kind ~= 'stream' and kind ~= 'none' then
    reply[q + 1] = { 'a key of type ' .. kind .. ' stands where a stream belongs', 0, '0-0', from, {} }
  else
    -- A stream or group that is not there, or vanished, is made, from its beginning.
    if redis.pcall('XPENDING', stream, group).err then
      redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
    end
    for n = 1, acks, SOME do
      local some = { unpack(ids, n, math.min(n + SOME - 1, acks)) }
      redis.call('XACK', stream, group, unpack(some))
      redis.call('XDEL', stream, unpack(some))
    end
    local entries = {}
    local function add(found)
      for _, entry in ipairs(found) do
        entries[#entries + 1] = entry
        if entry[2] then
          for _, text in ipairs(entry[2]) do room = room - #text end
        end
      end
    end
    if q == 1 and blocked then want = 0 end
    -- What this consumer was given before and has not acknowledged.
    while from ~= '' and #entries < want and (#entries == 0 or room > 0) do
      local found = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', math.min(CHUNK, want - #entries),
        'STREAMS', stream, from)
      if not found or #found[1][2] == 0 then
        from = ''
      else
        add(found[1][2])
        from = found[1][2][#found[1][2]][1]
      end
    end
    -- What others were given and have not acknowledged for long.
    if from == '' and idle > 0 and want > 0 then
      local cursor = '0-0'
      repeat
        local claimed = redis.call('XAUTOCLAIM', stream, group, consumer, idle, cursor, 'COUNT', CHUNK)
        local found = {}
        for _, entry in ipairs(claimed[2]) do
          if entry then found[#found + 1] = entry end
        end
        add(found)
        cursor = claimed[1]
      until cursor == '0-0' or #entries >= want or room <= 0
    end
    -- What is new: some at least, so that large records of one stream leave none of another behind.
    local dry = false
    while from == '' and #entries < want and (#entries == 0 or room > 0) do
      local found = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', math.min(CHUNK, want - #entries),
        'STREAMS', stream, '>')
      if not found or #found[1][2] == 0 then
        dry = true
        break
      end
      add(found[1][2])
    end
    local info = redis.call('XINFO', 'STREAM', stream)
    local last = '0-0'
    for n = 1, #info, 2 do
      if info[n] == 'last-generated-id' then last = info[n + 1] end
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
    reply[q + 1] = { '', left, last, from, entries }
  end
end
return reply
