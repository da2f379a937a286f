-- Between lease.lua and the script of a round: handles messages that are too large to fetch.
--
-- It is moved, whole, to a list beside its queue, and a note takes its place: what an agent is given, and what is found
-- again after a crash. A note carries a checksum, so that no message is taken for one by chance.
local NOTE = 'dataplane-agent: a message that is too large to be fetched '
local NOTE_BYTE = string.byte(NOTE)
local HEAD = 4096

local function note_on(message, list)
  local about = cjson.encode({ list = list, length = #message, sha1 = redis.sha1hex(message) })
  about = about .. '\n' .. string.sub(message, 1, HEAD)
  return NOTE .. redis.sha1hex(about) .. '\n' .. about
end

local function is_note(message)
  -- Asked of every message: without a copy of its beginning unless that may be a note's.
  if string.byte(message) ~= NOTE_BYTE then return false end
  if string.sub(message, 1, #NOTE) ~= NOTE then return false end
  return string.sub(message, #NOTE + 1, #NOTE + 40) == redis.sha1hex(string.sub(message, #NOTE + 42))
end

-- What is wrong with these keys, which are lists or do not exist; '' if nothing is.
local function wrong(...)
  for _, key in ipairs({ ... }) do
    local kind = redis.call('TYPE', key).ok
    if kind ~= 'list' and kind ~= 'none' then
      return 'a key of type ' .. kind .. ' stands where a list belongs: ' .. key
    end
  end
  return ''
end

-- Frees the memory of copies of a huge message.
local function free_memory()
  pcall(function() collectgarbage() end)
end

-- No time passes within a script: a lease that was set when it began may have ended when a huge message has been moved. It is
-- made to last this much longer, until the next call.
local BYTES_A_MILLISECOND = 5000

local function prolong_lease(length)
  redis.call('PEXPIRE', KEYS[1], ARGV[2] + math.ceil(length / BYTES_A_MILLISECOND))
end
