-- Part of an in-flight list, oldest first, to compare with the committed messages. An oversized message is nil.
--
-- KEYS: the list. ARGV: how many of the oldest to leave out, how many to give at the most, how many bytes (one message at
-- least), and from how many bytes on a message is oversized.
local skip, most, give, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local reply = {}
while #reply < most and (#reply == 0 or give > 0) do
  local message = redis.call('LINDEX', KEYS[1], -(skip + #reply + 1))
  if not message then break end
  if #message > limit then
    give = give - 1
    reply[#reply + 1] = false
  else
    give = give - #message
    reply[#reply + 1] = message
  end
end
return reply
