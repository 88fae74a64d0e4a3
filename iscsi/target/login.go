package target

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

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
	statusMissing        loginStatus = 0x0207
	statusSessionType    loginStatus = 0x0209
	statusNoSession      loginStatus = 0x020a
	statusInvalid        loginStatus = 0x020b
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

	started   bool // the first whole request has been looked at
	initiator iscsi.Name
	target    iscsi.Name
	discovery bool
	seen      map[string]bool // keys negotiated
	declared  bool            // our MaxRecvDataSegmentLength has been sent

	creds              mask.Credentials
	known              bool // creds are somebody's
	needAuth           bool
	method             string // chosen: None or CHAP
	challenge          chap.Challenge
	challenged, proved bool
}

// login performs the login phase. After nil the connection has a session and is in
// full feature phase.
func (c *conn) login() error {
	c.par = defaultParams()
	l := &login{c: c, seen: map[string]bool{}}
	var h pdu.Header
	for i := 0; ; i++ {
		if err := c.rd.Next(&h); err != nil {
			return err
		}
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
	case h.TSIH() != 0:
		// MaxConnections is 1: no session takes a second connection.
		return false, refuse(statusNoSession, "TSIH %d: no such session", h.TSIH())
	case h.ISID() != l.first.ISID() || h.CID() != l.first.CID() || h.ITT() != l.first.ITT():
		return false, refuse(statusInitiatorError, "ISID, CID or task tag changed during login")
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
	if !l.started {
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
	l.started = true
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
		if v := l.c.par.operational(k.Name, k.Value, l.discovery); v != "" {
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

// choose picks the authentication method.
func (l *login) choose(list string) (string, error) {
	offers := map[string]bool{}
	for m := range strings.SplitSeq(list, ",") {
		offers[m] = true
	}
	switch {
	case l.needAuth && offers["CHAP"]:
		l.method = "CHAP"
	case !l.needAuth && offers["None"]:
		l.method = "None"
	default:
		return "", errAuth(fmt.Sprintf("authentication methods offered: %.60q", list))
	}
	return l.method, nil
}

// authenticate goes one step of CHAP (RFC 7143 section 12.1.3).
func (l *login) authenticate(in map[string]string) ([]pdu.Key, error) {
	if len(in) == 0 {
		return nil, nil
	}
	if l.method != "CHAP" || l.stage != stageSecurity || l.proved {
		return nil, refuse(statusInitiatorError, "CHAP keys out of turn")
	}
	if list, ok := in["CHAP_A"]; ok {
		a, found := chap.Choose(list)
		if l.challenged || len(in) > 1 || !found {
			return nil, errAuth(fmt.Sprintf("CHAP algorithms offered: %.60q", list))
		}
		l.challenged = true
		l.challenge = chap.NewChallenge(a)
		return []pdu.Key{
			{Name: "CHAP_A", Value: fmt.Sprint(uint8(a))},
			{Name: "CHAP_I", Value: fmt.Sprint(l.challenge.Identifier)},
			{Name: "CHAP_C", Value: chap.Encode(l.challenge.Value)},
		}, nil
	}
	if !l.challenged {
		return nil, errAuth("CHAP answer before the challenge")
	}
	answer, err := chap.Decode(in["CHAP_R"])
	if err != nil {
		return nil, errAuth("CHAP_R can't be read")
	}
	// A stranger's answer is checked like any other, against a secret that
	// nobody has.
	secret, user := l.creds.Secret, l.creds.User
	if !l.known {
		secret, user = l.challenge.Value, in["CHAP_N"]
	}
	right := l.challenge.Verify(secret, answer)
	if !right || !l.known || in["CHAP_N"] != user {
		return nil, errAuth("wrong CHAP name or secret, or unknown initiator")
	}
	l.proved = true
	if _, ok := in["CHAP_C"]; !ok {
		return nil, nil
	}
	// The initiator wants proof of us. Its challenge may not be ours sent
	// back (RFC 7143 section 9.2.1).
	ch, err := chap.ReadChallenge(l.challenge.Algorithm, in["CHAP_I"], in["CHAP_C"])
	switch {
	case err != nil:
		return nil, errAuth(err.Error())
	case string(ch.Value) == string(l.challenge.Value):
		return nil, errAuth("CHAP challenge was reflected")
	case len(l.creds.MutualSecret) == 0:
		return nil, errAuth("initiator wants mutual CHAP, and there is no secret for it")
	}
	return []pdu.Key{
		{Name: "CHAP_N", Value: l.creds.MutualUser},
		{Name: "CHAP_R", Value: chap.Encode(ch.Answer(l.creds.MutualSecret))},
	}, nil
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
	h.SetDataLen(len(data))
	out := append(append([]byte(nil), h[:]...), data...)
	out = append(out, make([]byte, -len(data)&3)...)
	_, err := c.nc.Write(out)
	return err
}
