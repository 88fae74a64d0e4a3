package scsi

// op is one command: how it is looked at, what it may do, how it is performed.
type op struct {
	name    string
	code    byte
	service byte // service action, if hasSA
	hasSA   bool
	usage   []byte // CDB usage data of REPORT SUPPORTED OPERATION CODES

	moves  bool // a READ or WRITE and nothing else
	out    bool // the initiator sends c.Want bytes
	writes bool // changes the medium: refused where that is protected
	always bool // performed in spite of a unit attention (SAM-5 5.14)
	access byte // what reservations say about it: see pr.go
	state  byte // in which access state it is performed: see alua.go

	needs func(*Unit) bool // nil: every unit has it
	parse func(*Nexus, *Command) result
	run   func(*Nexus, *Command) result
}

const (
	isAllowed byte = iota // by whatever reservation
	isRead                // conflicts with exclusive access of another
	isWrite               // conflicts with any reservation of another
	isPROut               // decides by itself
)

func hasTrim(u *Unit) bool { return u.trim != nil }

var (
	usage6  = []byte{0, 0x1f, 0xff, 0xff, 0xff, 0}
	usage10 = []byte{0, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0}
	usage12 = []byte{0, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0}
	usage16 = []byte{0, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0}
)

func usage(base []byte, byte1 byte) []byte {
	u := append([]byte(nil), base...)
	u[1] = byte1
	return u
}

// ops is every command there is. The usage maps follow SPC-4 section 6.29 and the
// CDB layouts of SPC-4 and SBC-3.
var ops = []op{
	{name: "TEST UNIT READY", code: 0x00, usage: []byte{0, 0, 0, 0, 0, 0}, access: isRead, run: runNothing},
	{name: "REQUEST SENSE", code: 0x03, usage: []byte{0, 1, 0, 0, 0xff, 0}, always: true, state: anyState, run: runRequestSense},
	{name: "READ(6)", code: 0x08, moves: true, usage: usage6, access: isRead, parse: parseRW6, run: runRead},
	{name: "WRITE(6)", code: 0x0a, moves: true, usage: usage6, access: isWrite, out: true, writes: true, parse: parseRW6, run: runWrite},
	{name: "INQUIRY", code: 0x12, usage: []byte{0, 1, 0xff, 0xff, 0xff, 0}, always: true, state: anyState, parse: parseInquiry, run: runInquiry},
	{name: "MODE SELECT(6)", code: 0x15, usage: []byte{0, 0x11, 0, 0, 0xff, 0}, access: isWrite, state: standby, out: true, parse: parseModeSelect6, run: runModeSelect},
	{name: "RESERVE(6)", code: 0x16, usage: []byte{0, 0, 0, 0, 0, 0}, access: isPROut, parse: parseReserve6, run: runReserve6},
	{name: "RELEASE(6)", code: 0x17, usage: []byte{0, 0, 0, 0, 0, 0}, access: isPROut, parse: parseReserve6, run: runRelease6},
	{name: "MODE SENSE(6)", code: 0x1a, usage: []byte{0, 0x08, 0xff, 0xff, 0xff, 0}, access: isRead, state: standby, run: runModeSense6},
	{name: "START STOP UNIT", code: 0x1b, usage: []byte{0, 1, 0, 0x0f, 0xf7, 0}, access: isWrite, parse: parseStartStop, run: runStartStop},
	{name: "PREVENT ALLOW MEDIUM REMOVAL", code: 0x1e, usage: []byte{0, 0, 0, 0, 0x03, 0}, access: isWrite, run: runNothing},
	{name: "READ CAPACITY(10)", code: 0x25, usage: []byte{0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, 0}, parse: parseCapacity10, run: runCapacity10},
	{name: "READ(10)", code: 0x28, moves: true, usage: usage10, access: isRead, parse: parseRW10, run: runRead},
	{name: "WRITE(10)", code: 0x2a, moves: true, usage: usage10, access: isWrite, out: true, writes: true, parse: parseRW10, run: runWrite},
	{name: "WRITE AND VERIFY(10)", code: 0x2e, usage: usage(usage10, 0x12), access: isWrite, out: true, writes: true, parse: parseRW10, run: runWriteVerify},
	{name: "VERIFY(10)", code: 0x2f, usage: usage(usage10, 0x16), access: isRead, out: true, parse: parseVerify, run: runVerify},
	{name: "PRE-FETCH(10)", code: 0x34, usage: usage(usage10, 0x02), access: isRead, parse: parsePrefetch, run: runNothing},
	{name: "SYNCHRONIZE CACHE(10)", code: 0x35, usage: usage(usage10, 0x06), access: isWrite, parse: parseSync, run: runSync},
	{name: "READ DEFECT DATA(10)", code: 0x37, usage: []byte{0, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0}, access: isRead, run: runDefects10},
	{name: "WRITE SAME(10)", code: 0x41, usage: usage(usage10, 0x08), access: isWrite, out: true, writes: true, parse: parseWriteSame10, run: runWriteSame},
	{name: "UNMAP", code: 0x42, usage: []byte{0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0}, access: isWrite, out: true, writes: true, needs: hasTrim, parse: parseUnmap, run: runUnmap},
	{name: "MODE SELECT(10)", code: 0x55, usage: []byte{0, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0}, access: isWrite, state: standby, out: true, parse: parseModeSelect10, run: runModeSelect},
	{name: "MODE SENSE(10)", code: 0x5a, usage: []byte{0, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0}, access: isRead, state: standby, run: runModeSense10},
	{name: "PERSISTENT RESERVE IN, READ KEYS", code: 0x5e, service: prReadKeys, hasSA: true, usage: prInUsage, state: standby, run: runPRIn},
	{name: "PERSISTENT RESERVE IN, READ RESERVATION", code: 0x5e, service: prReadReservation, hasSA: true, usage: prInUsage, state: standby, run: runPRIn},
	{name: "PERSISTENT RESERVE IN, REPORT CAPABILITIES", code: 0x5e, service: prReportCapability, hasSA: true, usage: prInUsage, state: standby, run: runPRIn},
	{name: "PERSISTENT RESERVE IN, READ FULL STATUS", code: 0x5e, service: prReadFullStatus, hasSA: true, usage: prInUsage, state: standby, run: runPRIn},
	{name: "PERSISTENT RESERVE OUT, REGISTER", code: 0x5f, service: prRegister, hasSA: true, usage: prOutUsage, access: isPROut, state: standby, out: true, parse: parsePROut, run: runPROut},
	{name: "PERSISTENT RESERVE OUT, RESERVE", code: 0x5f, service: prReserve, hasSA: true, usage: prOutUsage, access: isPROut, state: standby, out: true, parse: parsePROut, run: runPROut},
	{name: "PERSISTENT RESERVE OUT, RELEASE", code: 0x5f, service: prRelease, hasSA: true, usage: prOutUsage, access: isPROut, state: standby, out: true, parse: parsePROut, run: runPROut},
	{name: "PERSISTENT RESERVE OUT, CLEAR", code: 0x5f, service: prClear, hasSA: true, usage: prOutUsage, access: isPROut, state: standby, out: true, parse: parsePROut, run: runPROut},
	{name: "PERSISTENT RESERVE OUT, PREEMPT", code: 0x5f, service: prPreempt, hasSA: true, usage: prOutUsage, access: isPROut, state: standby, out: true, parse: parsePROut, run: runPROut},
	{name: "PERSISTENT RESERVE OUT, PREEMPT AND ABORT", code: 0x5f, service: prPreemptAbort, hasSA: true, usage: prOutUsage, access: isPROut, state: standby, out: true, parse: parsePROut, run: runPROut},
	{name: "PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY", code: 0x5f, service: prRegisterIgnore, hasSA: true, usage: prOutUsage, access: isPROut, state: standby, out: true, parse: parsePROut, run: runPROut},
	{name: "PERSISTENT RESERVE OUT, REGISTER AND MOVE", code: 0x5f, service: prRegisterMove, hasSA: true, usage: prOutUsage, access: isPROut, state: standby, out: true, parse: parsePROut, run: runPROut},
	{name: "EXTENDED COPY(LID1)", code: 0x83, service: 0, hasSA: true, usage: []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0}, access: isWrite, out: true, parse: parseCopy, run: runCopy},
	{name: "RECEIVE COPY STATUS(LID1)", code: 0x84, service: 0, hasSA: true, usage: []byte{0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0}, access: isWrite, run: runCopyStatus},
	{name: "RECEIVE COPY OPERATING PARAMETERS", code: 0x84, service: 3, hasSA: true, usage: []byte{0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0}, access: isWrite, run: runCopyLimits},
	{name: "READ(16)", code: 0x88, moves: true, usage: usage16, access: isRead, parse: parseRW16, run: runRead},
	{name: "COMPARE AND WRITE", code: 0x89, usage: []byte{0, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 0}, access: isWrite, out: true, writes: true, parse: parseCompareAndWrite, run: runCompareAndWrite},
	{name: "WRITE(16)", code: 0x8a, moves: true, usage: usage16, access: isWrite, out: true, writes: true, parse: parseRW16, run: runWrite},
	{name: "ORWRITE(16)", code: 0x8b, usage: usage16, access: isWrite, out: true, writes: true, parse: parseRW16, run: runOrWrite},
	{name: "WRITE AND VERIFY(16)", code: 0x8e, usage: usage(usage16, 0x12), access: isWrite, out: true, writes: true, parse: parseRW16, run: runWriteVerify},
	{name: "VERIFY(16)", code: 0x8f, usage: usage(usage16, 0x16), access: isRead, out: true, parse: parseVerify, run: runVerify},
	{name: "PRE-FETCH(16)", code: 0x90, usage: usage(usage16, 0x02), access: isRead, parse: parsePrefetch, run: runNothing},
	{name: "SYNCHRONIZE CACHE(16)", code: 0x91, usage: usage(usage16, 0x06), access: isWrite, parse: parseSync, run: runSync},
	{name: "WRITE SAME(16)", code: 0x93, usage: usage(usage16, 0x09), access: isWrite, out: true, writes: true, parse: parseWriteSame16, run: runWriteSame},
	{name: "READ CAPACITY(16)", code: 0x9e, service: 0x10, hasSA: true, usage: []byte{0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0}, run: runCapacity16},
	{name: "GET LBA STATUS", code: 0x9e, service: 0x12, hasSA: true, usage: []byte{0, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0}, access: isRead, needs: hasTrim, parse: parseLBAStatus, run: runLBAStatus},
	{name: "REPORT LUNS", code: 0xa0, usage: []byte{0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0}, always: true, state: anyState, parse: parseReportLUNs, run: runReportLUNs},
	{name: "REPORT TARGET PORT GROUPS", code: 0xa3, service: 0x0a, hasSA: true, usage: []byte{0, 0xea, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0}, state: anyState, run: runPortGroups},
	{name: "REPORT SUPPORTED OPERATION CODES", code: 0xa3, service: 0x0c, hasSA: true, usage: []byte{0, 0x0c, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0}, state: anyState, run: runReportOpcodes},
	{name: "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", code: 0xa3, service: 0x0d, hasSA: true, usage: []byte{0, 0x0d, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0}, state: anyState, run: runReportTMF},
	{name: "SET TARGET PORT GROUPS", code: 0xa4, service: 0x0a, hasSA: true, usage: []byte{0, 0x0a, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0}, access: isWrite, state: anyState, out: true, parse: parseSetGroups, run: runSetGroups},
	{name: "READ(12)", code: 0xa8, moves: true, usage: usage12, access: isRead, parse: parseRW12, run: runRead},
	{name: "WRITE(12)", code: 0xaa, moves: true, usage: usage12, access: isWrite, out: true, writes: true, parse: parseRW12, run: runWrite},
	{name: "WRITE AND VERIFY(12)", code: 0xae, usage: usage(usage12, 0x12), access: isWrite, out: true, writes: true, parse: parseRW12, run: runWriteVerify},
	{name: "VERIFY(12)", code: 0xaf, usage: usage(usage12, 0x16), access: isRead, out: true, parse: parseVerify, run: runVerify},
	{name: "READ DEFECT DATA(12)", code: 0xb7, usage: []byte{0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0}, access: isRead, run: runDefects12},
}

var (
	prInUsage  = []byte{0, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0}
	prOutUsage = []byte{0, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0}
)

// span is where the commands of one operation code stand in ops.
type span struct{ from, to uint8 }

// byCode finds the commands of an operation code. It is built once and never
// changed.
var byCode = func() (t [256]span) {
	for i := range ops {
		o := &ops[i]
		o.usage = append([]byte(nil), o.usage...)
		o.usage[0] = o.code
		if o.hasSA {
			o.usage[1] = o.usage[1]&0xe0 | o.service
		}
		if t[o.code].to == 0 {
			t[o.code].from = uint8(i)
		}
		t[o.code].to = uint8(i + 1)
	}
	return t
}()

// lookup finds a CDB's command.
func lookup(c *Command) (*op, result) {
	s := byCode[c.CDB[0]]
	for i := s.from; i < s.to; i++ {
		if o := &ops[i]; !o.hasSA || o.service == c.CDB[1]&0x1f {
			return o, result{}
		}
	}
	if s.to == 0 {
		return nil, check(invalidOpcode)
	}
	return nil, badCDB(1)
}
