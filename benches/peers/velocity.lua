-- The windows of benches/workload.py in Redis, as they are often kept: a sorted set per key, scored by time in ms.
--
--   KEYS  the sorted sets of the three entities
--   ARGV  [1] the time; of an event also [2], its seconds: it is added, and what no window reaches is dropped
--
-- Returns for each key 5 counts and 5 sums, as the service does: 30 doubles. A member is "id:seconds".
local windows = {600000, 3600000, 21600000, 86400000, 604800000}
local now = tonumber(ARGV[1])
local values = {}
for n, key in ipairs(KEYS) do
  if ARGV[2] then
    redis.call('ZADD', key, now, redis.call('INCR', 'id') .. ':' .. ARGV[2])
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now - windows[5])
  end
  local found = redis.call('ZREVRANGEBYSCORE', key, now, '(' .. (now - windows[5]), 'WITHSCORES')
  local count, sum, at = 0, 0, 1
  for i, window in ipairs(windows) do
    while found[at] and tonumber(found[at + 1]) > now - window do
      count = count + 1
      sum = sum + tonumber(string.match(found[at], ':(.*)'))
      at = at + 2
    end
    values[10 * (n - 1) + i] = count
    values[10 * (n - 1) + 5 + i] = sum
  end
end
return struct.pack('<' .. string.rep('d', 10 * #KEYS), unpack(values, 1, 10 * #KEYS))
