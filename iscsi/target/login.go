package target

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/chap"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/pdu"
)

// Login status class and detail (RFC 7143 section 11.13.5).
type loginStatus uint16

const (
	statusOK             loginStatus = 0x0000
	statusInitiatorError loginStatus = 0x0200
	statusAuthFailed     loginStatus = 0x0201
	statusVersion        loginStatus = 0x0205
	statusTooMany        loginStatus = 0x0206
	statusMissing        loginStatus = 0x0207
	statusSessionType    loginStatus = 0x0209
	statusNoSession      loginStatus = 0x020a
	statusTargetError    loginStatus = 0x0300
	statusOutOfResources loginStatus = 0x0302
)

// Stages of login (RFC 7143 section 11.12.3).
const (
	stageSecurity    = 0
	stageOperational = 1
	stageFull        = 3
)

// Limits of login, in bytes and exchanges: what a stranger may make us hold.
const (
	loginDataMax = 8192 // of one PDU: the default MaxRecvDataSegmentLength
	loginTextMax = 32 << 10
	loginPDUsMax = 64
)

// refusal is a login that is answered with a status, and why for the log.
type loginError struct {
	status loginStatus
	why    string
}

func (e *loginError) Error() string { return e.why }

func refuse(s loginStatus, format string, args ...any) error {
	return &loginError{s, fmt.Sprintf(format, args...)}
}

// errAuth is the one answer to a wrong secret, an unknown initiator and an unknown
// target; why tells them apart in the log only.
func errAuth(why string) error { return &loginError{statusAuthFailed, why} }

// login is one login phase. It is a value of its own so that nothing of it stays
// when the phase is over.
type login struct {
	c     *conn
	first pdu.Header // the first request
	stage byte
	text  []byte // of requests with the C bit so far

	started   int // whole requests that have been looked at
	initiator iscsi.Name
	target    iscsi.Name
	discovery bool
	seen      map[string]bool   // keys negotiated
	said      map[string]string // names as they were given first
	declared  bool              // our MaxRecvDataSegmentLength has been sent

	creds              mask.Credentials
	known              bool // creds are somebody's
	needAuth           bool
	method             string // chosen: None or CHAP
	challenge          chap.Challenge
	challenged, proved bool

	reinstate uint16 // TSIH that the session takes over
}

// login performs the login phase. After nil the connection has a session and is in
// full feature phase.
func (c *conn) login() error {
	c.par = defaultParams()
	l := &login{c: c, seen: map[string]bool{}, said: map[string]string{}}
	var h pdu.Header
	for i := 0; ; i++ {
		if err := c.rd.Next(&h); err != nil {
			return err
		}
		arrived := time.Now()
		if h.Opcode() != pdu.OpLogin {
			return fmt.Errorf("%w: %s before login", errProtocol, h.Opcode())
		}
		data := make([]byte, h.DataLen())
		if err := c.rd.Read(data); err != nil {
			return err
		}
		if i == 0 {
			l.first = h
			l.stage = h.Flags() >> 2 & 3
			c.par.cid = h.CID()
			c.expCmdSN.Store(h.CmdSN())
		}
		done, err := l.request(&h, data, i)
		if err == nil {
			if done {
				return nil
			}
			continue
		}
		var le *loginError
		if errors.As(err, &le) {
			if le.status == statusAuthFailed {
				c.waitUntil(arrived.Add(c.srv.opt.FailureDelay))
			}
			if werr := l.answer(&h, 0, le.status, nil, 0); werr != nil {
				return werr
			}
			if l.initiator != "" {
				return fmt.Errorf("%s: %w", l.initiator, err)
			}
		}
		return err
	}
}

// request performs one Login Request. done says that full feature phase began.
func (l *login) request(h *pdu.Header, data []byte, i int) (done bool, err error) {
	csg, nsg := h.Flags()>>2&3, h.Flags()&3
	transit, more := h.Final(), h.Flags()&pdu.FlagContinue != 0
	switch {
	case i >= loginPDUsMax:
		return false, refuse(statusInitiatorError, "no end after %d login requests", i)
	case h[3] > 0:
		return false, refuse(statusVersion, "version %d at least: only 0 is spoken here", h[3])
	case h.ISID() != l.first.ISID() || h.TSIH() != l.first.TSIH() || h.CID() != l.first.CID() || h.ITT() != l.first.ITT():
		return false, refuse(statusInitiatorError, "ISID, TSIH, CID or task tag changed during login")
	case csg != l.stage || csg > stageOperational:
		return false, refuse(statusInitiatorError, "stage %d, expected %d", csg, l.stage)
	case transit && (more || nsg <= csg || nsg == 2):
		return false, refuse(statusInitiatorError, "transition from stage %d to %d", csg, nsg)
	case len(l.text)+len(data) > loginTextMax:
		return false, refuse(statusInitiatorError, "more than %d bytes of text", loginTextMax)
	}
	if l.text = append(l.text, data...); more {
		// Answered with nothing until the text is whole.
		return false, l.answer(h, 0, statusOK, nil, 0)
	}
	keys, err := pdu.ParseText(l.text)
	l.text = l.text[:0]
	if err != nil {
		return false, refuse(statusInitiatorError, "%v", err)
	}
	if l.started++; l.started == 1 {
		if err := l.start(keys); err != nil {
			return false, err
		}
	}
	out, err := l.negotiate(keys)
	if err != nil {
		return false, err
	}
	if csg == stageSecurity && transit && !l.authDone() {
		if l.challenged || l.method != "CHAP" {
			return false, errAuth("initiator would not authenticate")
		}
		transit = false // not before CHAP is through
	}
	if csg == stageOperational && !l.authDone() {
		return false, errAuth("initiator skipped authentication")
	}
	flags := csg << 2
	if transit {
		flags |= pdu.FlagFinal | nsg
	}
	if transit && nsg == stageFull {
		c := l.c
		c.par.firstBurst = min(c.par.firstBurst, c.par.maxBurst)
		if err := l.establish(); err != nil {
			return false, err
		}
		if a := c.ss.alias; a != "" {
			out = append(out, pdu.Key{Name: "TargetAlias", Value: a})
		}
		if err := l.answer(h, flags, statusOK, out, c.ss.info.TSIH); err != nil {
			return false, err
		}
		c.rd.HeaderDigest, c.rd.DataDigest, c.rd.MaxData = c.par.headerDigest, c.par.dataDigest, ourRecvMax
		c.sendMax.Store(c.par.sendMax)
		return true, nil
	}
	if transit {
		l.stage = nsg
	}
	return false, l.answer(h, flags, statusOK, out, 0)
}

// start looks at who comes and what for (RFC 7143 section 6.3): the names have to
// be in the first request.
func (l *login) start(keys []pdu.Key) error {
	value := func(name string) (string, bool) {
		for _, k := range keys {
			if k.Name == name {
				return k.Value, true
			}
		}
		return "", false
	}
	name, ok := value("InitiatorName")
	if !ok {
		return refuse(statusMissing, "no InitiatorName")
	}
	var err error
	if l.initiator, err = iscsi.ParseName(name); err != nil {
		return refuse(statusInitiatorError, "%v", err)
	}
	switch kind, _ := value("SessionType"); kind {
	case "", "Normal":
		t, ok := value("TargetName")
		if !ok {
			return refuse(statusMissing, "no TargetName")
		}
		if l.target, err = iscsi.ParseName(t); err != nil {
			l.target = "" // an unknown target like any other
		}
	case "Discovery":
		l.discovery = true
	default:
		return refuse(statusSessionType, "SessionType %.40q", kind)
	}
	var guarded bool
	l.creds, l.known, guarded = l.c.srv.masks.Credentials(l.initiator)
	switch {
	case l.known || l.c.srv.opt.RequireCHAP:
		l.needAuth = true
	case !l.c.srv.masks.Known(l.initiator):
		// A stranger is challenged like those who are known, and fails like
		// one of them with the wrong secret.
		l.needAuth = guarded
	}
	return nil
}

func (l *login) authDone() bool { return !l.needAuth || l.proved }

// negotiate answers the keys of one whole request.
func (l *login) negotiate(keys []pdu.Key) ([]pdu.Key, error) {
	var out []pdu.Key
	say := func(name, value string) { out = append(out, pdu.Key{Name: name, Value: value}) }
	if !l.discovery && !l.seen["TargetPortalGroupTag"] {
		// RFC 7143 section 13.9: in the first response.
		l.seen["TargetPortalGroupTag"] = true
		say("TargetPortalGroupTag", strconv.Itoa(int(l.c.portalGroup)))
	}
	// FirstBurstLength depends on MaxBurstLength, wherever that stands.
	for _, k := range keys {
		if k.Name == "MaxBurstLength" && l.stage == stageOperational {
			l.c.par.operational(k.Name, k.Value, l.discovery)
		}
	}
	chapKeys := map[string]string{}
	for _, k := range keys {
		if l.seen[k.Name] {
			// RFC 7143 section 6.2: a key is negotiated once.
			return nil, refuse(statusInitiatorError, "%s twice", k.Name)
		}
		switch k.Name {
		case "InitiatorName", "TargetName", "SessionType":
			// Declared once; said again by some initiators, which is harmless
			// where it is the same.
			if v, again := l.said[k.Name]; again && v != k.Value || !again && l.started > 1 {
				return nil, refuse(statusInitiatorError, "%s after the first request, or another one", k.Name)
			}
			l.said[k.Name] = k.Value
			continue
		case "CHAP_A", "CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C":
			if _, twice := chapKeys[k.Name]; twice {
				return nil, refuse(statusInitiatorError, "%s twice", k.Name)
			}
			chapKeys[k.Name] = k.Value
			continue
		}
		l.seen[k.Name] = true
		if isConstant(k.Value) {
			continue
		}
		if k.Name == "AuthMethod" {
			if l.stage != stageSecurity {
				return nil, refuse(statusInitiatorError, "AuthMethod outside security negotiation")
			}
			v, err := l.choose(k.Value)
			if err != nil {
				return nil, err
			}
			say(k.Name, v)
			continue
		}
		v := l.c.par.operational(k.Name, k.Value, l.discovery)
		if v == rejected && k.Name == "MaxRecvDataSegmentLength" {
			// Declared, so there is nothing to answer (RFC 7143 section 6.2).
			return nil, refuse(statusInitiatorError, "%s of %.40q", k.Name, k.Value)
		}
		if v != "" {
			say(k.Name, v)
		}
	}
	more, err := l.authenticate(chapKeys)
	if err != nil {
		return nil, err
	}
	out = append(out, more...)
	if l.stage == stageOperational && !l.declared {
		l.declared = true
		say("MaxRecvDataSegmentLength", fmt.Sprint(ourRecvMax))
	}
	return out, nil
}

// waitUntil waits, or until the connection is dropped.
func (c *conn) waitUntil(t time.Time) {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.dropped:
	}
}

// answer sends a Login Response (RFC 7143 section 11.13).
func (l *login) answer(req *pdu.Header, flags byte, st loginStatus, keys []pdu.Key, tsih uint16) error {
	c := l.c
	var h pdu.Header
	h.Set(pdu.OpLoginResp, flags)
	h.SetISID(req.ISID())
	h.SetTSIH(req.TSIH())
	if tsih != 0 {
		h.SetTSIH(tsih)
	}
	h.SetITT(req.ITT())
	h.SetStatSN(c.statSN)
	c.statSN++
	exp := c.expCmdSN.Load()
	h.SetWindow(exp, exp+c.window-1)
	binary.BigEndian.PutUint16(h[36:], uint16(st))
	data := pdu.AppendText(nil, keys...)
	if len(data) > loginDataMax {
		// Only of keys that nobody knows: those that there are fit many times.
		return refuse(statusInitiatorError, "%d bytes of answers, at most %d", len(data), loginDataMax)
	}
	h.SetDataLen(len(data))
	out := append(append([]byte(nil), h[:]...), data...)
	out = append(out, make([]byte, -len(data)&3)...)
	_, err := c.nc.Write(out)
	return err
}
