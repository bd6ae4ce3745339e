-- One step of a host: it says what it has in force and wants, and gets its shares. src/gate/share/store.rs has the
-- calls, and docs/share.md what holds. Each call is atomic, and asks the time once.
--
-- KEYS: pool, hosts, keys, in:HOST. Other names begin with the same prefix, so all are in one slot of a cluster.
--   pool    a hash: born, run (the server's run), most (the most hosts at once)
--   hosts   a hash, host -> "lease conn base start hosts settle forget least report_by agent"; times in ms of the store;
--           base: from which conn on its lines count. Until it has reported everything: 0 if it was lost, -1 if it was
--           lost for long or is new
--           report_by: if it is new to the store and has shares in force, until when it must have reported them; else 0
--   keys    a set of the keys that have shares
--   in:HOST a set of keys of which this host should hear
--   k:KEY   a hash, host -> "share want limit conn": the most that the host may have in force, and what it wants
--
-- A host without a line in k:KEY has the start-up share: 1 if the limit is at least its number of hosts, else 0.
-- The sum of what all hosts have in force is never above the limit: a host gets more only from what is left.

local prefix, command, host, agent, run = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local lease_ms, settle_ms, forget_ms, least = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local DAY = 86400000
-- How long a line lives that nobody repeats: agents repeat theirs each five minutes.
local LINE = math.max(3600000, 3 * lease_ms)

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function numbers(text)
  local all = {}
  for word in string.gmatch(text, '%S+') do all[#all + 1] = word end
  return all
end

local function read_host(text)
  local n = numbers(text)
  return { lease = tonumber(n[1]), conn = tonumber(n[2]), base = tonumber(n[3]), start = tonumber(n[4]),
    hosts = tonumber(n[5]), settle = tonumber(n[6]), forget = tonumber(n[7]), least = tonumber(n[8]),
    report_by = tonumber(n[9]), agent = n[10] }
end

local function whole(number) return string.format('%.0f', number) end

local function write_host(name, h)
  local text = table.concat({ whole(h.lease), whole(h.conn), whole(h.base), whole(h.start), whole(h.hosts),
    whole(h.settle), whole(h.forget), whole(h.least), whole(h.report_by), h.agent }, ' ')
  redis.call('HSET', KEYS[2], name, text)
end

-- The pool. A store that is empty, or another server than before, may have forgotten shares that are in force. So for
-- the time of a lease nobody gets more than it says that it has.
local pool = redis.call('HMGET', KEYS[1], 'born', 'run', 'most')
local born, most = tonumber(pool[1] or ''), tonumber(pool[3] or '0')
if not born or (pool[2] ~= run and run ~= '?') then
  born = now
  redis.call('HSET', KEYS[1], 'born', whole(now), 'run', run)
end
local learning_ms = math.max(0, born + lease_ms - now)

-- Whether a host has no lease, as far as the store knows: its gate may have its fall-back shares. That holds also for a
-- host that has said so itself, until it has reported everything: the answer that renews its lease may not arrive.
local function is_lost(h) return now >= h.lease or (h.base <= 0 and h.report_by == 0) end

-- The hosts. One that has been lost for long is forgotten, and what it had is given to the others.
local hosts, names, count, lost, has_unreported = {}, {}, 0, {}, false
local flat = redis.call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do
  local h = read_host(flat[i + 1])
  if flat[i] ~= host and now >= h.lease + h.settle + h.forget then
    redis.call('HDEL', KEYS[2], flat[i])
    redis.call('DEL', prefix .. 'in:' .. flat[i])
  else
    hosts[flat[i]] = h
    names[#names + 1] = flat[i]
    count = count + 1
    if flat[i] ~= host and is_lost(h) then lost[#lost + 1] = flat[i] end
    if now < h.lease and h.report_by > 0 then has_unreported = true end
  end
end
table.sort(names)
table.sort(lost)
local own = hosts[host]

local function expire()
  redis.call('PEXPIRE', KEYS[1], 30 * DAY)
  redis.call('PEXPIRE', KEYS[2], 30 * DAY)
  redis.call('PEXPIRE', KEYS[3], 30 * DAY)
  redis.call('PEXPIRE', KEYS[4], LINE)
end

-- By what this host divides a limit without contact: the number of hosts, or more while others divide by less, because
-- they do not know yet how many there are. So the parts of all together are never above a limit.
local function divisor()
  local taken = 0
  for name, h in pairs(hosts) do
    if name ~= host then taken = taken + 1 / math.max(1, h.hosts) end
  end
  local left = 1 - taken
  if left < 0.000001 then return 1000000 end
  return math.max(count, math.ceil(1 / left - 0.000001))
end

if command == 'hello' then
  -- ARGV: 10 start-up hosts and 11 hosts that are in force, 12 whether the file has a lease that runs.
  local start, leased = tonumber(ARGV[10]), ARGV[12] == '1'
  if own and own.agent ~= agent and now < own.lease + own.settle then
    return { 'taken', own.lease + own.settle - now }
  end
  if (learning_ms > 0 or has_unreported) and not leased and not own then
    return { 'wait', learning_ms }
  end
  local is_back = own and own.base < 0 and own.agent == agent and now < own.lease + own.settle
  local report_by = leased and now + 2 * lease_ms or 0
  if not own then
    count = count + 1
    -- A step of before the store forgot everything may still be on its way.
    own = { lease = now + lease_ms, conn = 1000 * now, base = -1, report_by = report_by, start = start }
  elseif own.agent ~= agent or now >= own.lease + own.settle or (learning_ms > 0 and leased) then
    -- What it had is not in force any more: its gate has its fall-back shares. If it says otherwise, it is right, and
    -- this store may have missed what was granted last.
    own.base, own.report_by = -1, report_by
    if leased then own.lease = now + lease_ms end
  elseif now >= own.lease or not leased then
    own.base = math.min(own.base, 0)
    if not leased then own.report_by = 0 end
  end
  if own.base < 0 then
    -- If it has come before and has reported nothing since, what it lists may be its fall-back shares of then.
    own.hosts = math.min(is_back and own.hosts or math.huge, tonumber(ARGV[11]))
    -- Until its first step, its start-up shares are kept for it.
    own.lease = math.max(own.lease, now)
    -- Of keys that others have shares of a new host gets its first place by asking.
    for _, key in ipairs(redis.call('SMEMBERS', KEYS[3])) do
      if redis.call('EXISTS', prefix .. 'k:' .. key) == 1 then
        redis.call('HSET', prefix .. 'k:' .. key, host, '0 0 0 ' .. whole(own.conn + 1))
        redis.call('PEXPIRE', prefix .. 'k:' .. key, LINE)
        redis.call('SADD', KEYS[4], key)
      else
        redis.call('SREM', KEYS[3], key)
      end
    end
  end
  most = math.max(most, count, start)
  redis.call('HSET', KEYS[1], 'most', whole(most))
  -- A hello renews no lease: its answer may not arrive.
  own.conn, own.agent = own.conn + 1, agent
  own.settle, own.forget, own.least = settle_ms, forget_ms, least
  write_host(host, own)
  expire()
  return { 'ok', own.conn, count, most, own.base <= 0 and 1 or 0, own.base < 0 and 1 or 0 }
end

-- step. ARGV: 10 conn, 11 start-up hosts and 12 hosts that are in force, 13 whether all is reported; then for each key
-- its name, its share in force (-1: the start-up share), how many run, what it wants, and its limit (0: not known).
local conn = tonumber(ARGV[10])
if not own or own.agent ~= agent or own.conn ~= conn or (now >= own.lease and (own.base > 0 or own.report_by > 0)) then
  return { 'gone' }
end
if own.base < 0 and now >= own.lease + own.settle then return { 'gone' } end
-- While it has not said what it has, nobody gets more. So it must not take long, whatever its gate does.
if own.report_by > 0 and now >= own.report_by and ARGV[13] ~= '1' then return { 'gone' } end
local was_leased, hosts_before = now < own.lease, own.hosts
own.lease, own.start, own.hosts = now + lease_ms, tonumber(ARGV[11]), tonumber(ARGV[12])
own.settle, own.forget, own.least = settle_ms, forget_ms, least
local divided_by = divisor()
-- If its lease was over, its gate has its fall-back shares until the answer arrives.
if ARGV[13] == '1' and own.base <= 0 and was_leased then own.base, own.report_by = conn, 0 end

local function start_share(h, limit) return limit >= h.start and 1 or 0 end

-- Nobody may get more while the store waits for hosts that it has forgotten, or has not heard yet what one of them has.
local is_learning = learning_ms > 0 or has_unreported
-- Hosts that the store has forgotten may return: it divides by no fewer than before.
if is_learning and own.hosts < 1000000 then divided_by = math.max(divided_by, own.hosts) end
own.hosts = math.min(own.hosts, divided_by)
-- Until it has reported everything, what it lists may be its fall-back shares of when it joined.
if own.base <= 0 then own.hosts = math.min(own.hosts, hosts_before) end
write_host(host, own)
expire()

-- The most that a host may have in force of a key.
local function value(h, record, limit)
  local share = start_share(h, limit)
  if record and record.conn >= h.base then share = record.share end
  if now < h.lease and h.base > 0 then return share end
  local fall_back = math.min(limit, math.max(math.floor(limit / math.max(1, h.hosts)), h.least))
  if now < h.lease + h.settle then return math.max(share, fall_back) end
  return fall_back
end

-- Gives each of these what it wants, or an equal part. What an equal division leaves goes round.
local function divide(left, wanting)
  table.sort(wanting, function(a, b)
    if a.want ~= b.want then return a.want < b.want end
    return a.name < b.name
  end)
  local at, n = 1, #wanting
  while at <= n do
    local part = math.floor(left / (n - at + 1))
    local this = wanting[at]
    if this.want > part then break end
    this.target = this.want
    left = left - this.want
    at = at + 1
  end
  local few = n - at + 1
  if few > 0 then
    local part = math.floor(left / few)
    local rest = left - part * few
    local turn_ms = part == 0 and 30000 or 120000
    local first = (math.floor(now / turn_ms) * math.max(1, rest)) % few
    local unmet = {}
    for i = at, n do unmet[#unmet + 1] = wanting[i] end
    table.sort(unmet, function(a, b) return a.name < b.name end)
    for i, this in ipairs(unmet) do
      local place = (i - 1 - first) % few
      this.target = math.min(this.want, part + (place < rest and 1 or 0))
      left = left - this.target
    end
  end
  return left
end

local reply = { 'ok', count, most, {}, {}, table.concat(lost, ' '), divided_by }
local shares = reply[4]

for i = 14, #ARGV, 5 do
  local key, own_share, running = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local want, own_limit = tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4])
  local name = prefix .. 'k:' .. key
  local records = {}
  local lines = redis.call('HGETALL', name)
  for at = 1, #lines, 2 do
    local n = numbers(lines[at + 1])
    records[lines[at]] =
      { share = tonumber(n[1]), want = tonumber(n[2]), limit = tonumber(n[3]), conn = tonumber(n[4]) }
  end

  -- If the hosts do not agree on the limit, the lowest counts.
  local limit = own_limit > 0 and own_limit or math.huge
  for other, record in pairs(records) do
    local h = hosts[other]
    if not h then
      redis.call('HDEL', name, other)
    elseif other ~= host and now < h.lease and record.conn >= h.base and record.limit > 0 then
      limit = math.min(limit, record.limit)
    end
  end

  -- Nobody says what the limit is, so nobody wants anything.
  local is_known = limit < math.huge
  if not is_known then limit = 0 end
  local start = start_share(own, limit)
  if own_share < 0 then own_share = start end
  local in_force = math.max(own_share, running)

  -- What each may have, and what each should have.
  local left, sum, wanting, idle, all = limit, in_force, {}, {}, {}
  for _, other in ipairs(names) do
    local h = hosts[other]
    local record = records[other]
    local this = { name = other, target = 0, want = 0 }
    if other == host then
      this.value, this.want = in_force, math.min(want, limit)
    else
      this.value = value(h, record, limit)
      sum = sum + this.value
      if now < h.lease and record and record.conn >= h.base then this.want = math.min(record.want, limit) end
    end
    if other ~= host and is_lost(h) then
      -- It is lost: what it may have is not for others.
      this.target, this.lost = this.value, true
      left = left - this.value
    elseif this.want > 0 then
      wanting[#wanting + 1] = this
    else
      idle[#idle + 1] = this
    end
    all[#all + 1] = this
  end
  left = divide(math.max(0, left), wanting)
  -- What is left is for the start-up shares, first of those that have theirs.
  for pass = 1, 2 do
    for _, this in ipairs(idle) do
      local may_start = start_share(hosts[this.name], limit) > 0
      if left > 0 and this.target == 0 and may_start and (pass == 2 or this.value > 0) then
        this.target = 1
        left = left - 1
      end
    end
  end

  local free = limit - sum
  local me, unmet = nil, 0
  for _, this in ipairs(all) do
    if this.name == host then
      me = this
    elseif not this.lost and this.target > this.value then
      unmet = unmet + this.target - this.value
    end
  end
  local share = in_force
  if me.target > in_force then
    share = math.min(me.target, in_force + math.max(0, free))
  elseif me.target < in_force and (unmet > math.max(0, free) or free < 0) then
    share = me.target
  elseif want == 0 and in_force > me.target then
    share = me.target
  end
  -- While nobody lacks anything, a host that wants something has an equal part at once.
  if want > 0 and unmet == 0 and free > 0 and left > 0 then
    local equal = math.floor(limit / math.max(1, count))
    share = math.max(share, math.min(equal, in_force + free, share + left))
  end
  share = math.min(share, limit)
  -- What only still runs does not become a share while others have the rest.
  if free < 0 then share = math.min(share, math.max(own_share, in_force + free)) end
  if is_learning then share = math.min(share, own_share) end

  local held = math.max(share, in_force)
  local is_start = want == 0 and held == share and share == start
  -- What its gate takes for the start-up share may be more than none, which others may rely on.
  if not is_known and own_share == 0 and (is_learning or #lines > (records[host] and 2 or 0)) then is_start = false end
  if is_start then
    redis.call('HDEL', name, host)
  else
    redis.call('HSET', name, host, table.concat({ whole(held), whole(want), whole(own_limit), whole(conn) }, ' '))
  end
  if redis.call('HLEN', name) > 0 then
    redis.call('PEXPIRE', name, LINE)
    redis.call('SADD', KEYS[3], key)
  else
    redis.call('SREM', KEYS[3], key)
  end

  -- Who has too much while another lacks something, or may have more now, should hear of it.
  local still_free = limit - sum - (held - in_force)
  local i_lack = math.max(0, me.target - held)
  for _, this in ipairs(all) do
    if this.name ~= host and not this.lost and not is_learning then
      local lacks = this.target > this.value
      if (lacks and still_free > 0)
        or (this.value > this.target and (i_lack + unmet > math.max(0, still_free) or still_free < 0)) then
        redis.call('SADD', prefix .. 'in:' .. this.name, key)
        redis.call('PEXPIRE', prefix .. 'in:' .. this.name, LINE)
      end
    end
  end
  shares[#shares + 1] = is_start and -1 or share
end

reply[5] = redis.call('SPOP', KEYS[4], 500)
return reply
