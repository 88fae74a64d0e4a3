package initiator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/chap"
	"github.com/cleave-san/cleave/iscsi/pdu"
)

// Stages of login (RFC 7143 section 11.12.3).
const (
	stageSecurity    = 0
	stageOperational = 1
	stageFull        = 3
)

// Limits of login: what a target may make us hold, and for how many exchanges.
const (
	loginDataMax  = 8192 // of one PDU, in bytes: the default MaxRecvDataSegmentLength
	loginTextMax  = 64 << 10
	loginPDUsMax  = 32
	redirectsMax  = 4
	receiveBuffer = 128 << 10
)

// wire is a connection that has logged in, before anything else happens on it.
type wire struct {
	nc        *source
	rd        *pdu.Reader
	par       params
	portal    string // where it leads to, after redirections
	group     string // target portal group tag
	cmdSN     uint32
	expStatSN uint32
	maxCmdSN  uint32
}

// redirection is a login answered with "target moved".
type redirection struct{ to string }

func (r *redirection) Error() string { return "login: redirected to " + r.to }

// connect logs in at a portal, or where that sends us, within ctx and o.Timeout.
// No target means a discovery session.
func connect(ctx context.Context, o *Options, portal string, target iscsi.Name, isid [6]byte) (*wire, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	at := portal
	algorithms := allAlgorithms
	for range redirectsMax {
		w, chosen, err := dial(ctx, o, at, target, isid, algorithms)
		var r *redirection
		switch {
		case err == nil:
			return w, nil
		case chosen == chap.SHA256 && algorithms == allAlgorithms && isRefusal(err):
			// tgt and IET mean SHA-1 by the number that IANA gave to SHA-256.
			algorithms = olderAlgorithms
		case errors.As(err, &r):
			at = r.to
		default:
			return nil, fmt.Errorf("portal %s: %w", at, err)
		}
	}
	return nil, fmt.Errorf("portal %s: %w", portal, protocolError("login: redirected more than %d times", redirectsMax-1))
}

// CHAP_A offers, the strongest first.
const (
	allAlgorithms   = "7,6,5"
	olderAlgorithms = "6,5"
)

// isRefusal reports whether a login was refused for something of ours.
func isRefusal(err error) bool {
	var l *LoginError
	return errors.As(err, &l) && l.Class == 2
}

func dial(ctx context.Context, o *Options, portal string, target iscsi.Name, isid [6]byte, algorithms string) (*wire, chap.Algorithm, error) {
	nc, err := o.Dial(ctx, "tcp", portal)
	if err != nil {
		return nil, 0, err
	}
	src, err := newSource(nc)
	if err != nil {
		return nil, 0, err
	}
	// Closing is what ends a login that ctx has overtaken: nothing can reset it.
	stop := context.AfterFunc(ctx, func() { src.Close() })
	w := &wire{nc: src, rd: pdu.NewReader(src, loginDataMax, loginDataMax), par: defaultParams(), portal: portal, cmdSN: 1}
	l := login{w: w, o: o, target: target, isid: isid, algorithms: algorithms, seen: map[string]bool{}}
	err = l.run()
	if !stop() && ctx.Err() != nil {
		err = fmt.Errorf("login: %w", ctx.Err())
	}
	if err != nil {
		src.Close()
		return nil, l.algorithm, err
	}
	w.par.settle()
	w.rd.MaxData = ourRecvMax
	w.rd.HeaderDigest, w.rd.DataDigest = w.par.headerDigest, w.par.dataDigest
	w.rd.Grow(receiveBuffer)
	return w, l.algorithm, nil
}

// login is one login phase.
type login struct {
	w         *wire
	o         *Options
	target    iscsi.Name
	isid      [6]byte
	exchanges int
	text      int
	seen      map[string]bool // keys of the target
	tsih      uint16

	algorithms string         // CHAP_A that is offered
	algorithm  chap.Algorithm // that the target chose
}

func (l *login) run() error {
	if err := l.security(); err != nil {
		return err
	}
	keys := l.o.offer(l.target == "")
	for {
		got, done, err := l.exchange(stageOperational, stageFull, true, keys)
		if err != nil {
			return err
		}
		keys = nil
		for _, k := range got {
			reply, err := l.w.par.answer(l.o, k)
			if err != nil {
				return err
			}
			if reply != "" {
				keys = append(keys, pdu.Key{Name: k.Name, Value: reply})
			}
		}
		if done {
			if l.o.HeaderDigest == DigestRequired && !l.w.par.headerDigest || l.o.DataDigest == DigestRequired && !l.w.par.dataDigest {
				return errors.New("login: the target does not agree to digests")
			}
			return nil
		}
	}
}

// security is the first stage: who we are, and the proof.
func (l *login) security() error {
	keys := []pdu.Key{{Name: "InitiatorName", Value: string(l.o.Initiator)}}
	if l.target == "" {
		keys = append(keys, pdu.Key{Name: "SessionType", Value: "Discovery"})
	} else {
		keys = append(keys, pdu.Key{Name: "SessionType", Value: "Normal"}, pdu.Key{Name: "TargetName", Value: string(l.target)})
	}
	method := "None"
	if c := l.o.CHAP; c != nil {
		method = "CHAP,None"
		if len(c.MutualSecret) > 0 {
			method = "CHAP" // a target that needn't prove itself would not be the one
		}
	}
	keys = append(keys, pdu.Key{Name: "AuthMethod", Value: method})
	got, done, err := l.exchange(stageSecurity, stageOperational, method == "None", keys)
	if err != nil {
		return err
	}
	switch chosen := find(got, "AuthMethod"); {
	case chosen == "CHAP" && method != "None":
		if done, err = l.chap(); err != nil {
			return err
		}
	case chosen != "None" && chosen != "" || method == "CHAP":
		return fmt.Errorf("%w: the target wants AuthMethod=%.40s, offered was %s", ErrAuth, chosen, method)
	}
	for !done {
		if _, done, err = l.exchange(stageSecurity, stageOperational, true, nil); err != nil {
			return err
		}
	}
	return nil
}

// chap proves who we are, and has the target do the same if there is a mutual
// secret (RFC 7143 section 12.1.3).
func (l *login) chap() (done bool, err error) {
	c := l.o.CHAP
	got, _, err := l.exchange(stageSecurity, stageOperational, false, []pdu.Key{{Name: "CHAP_A", Value: l.algorithms}})
	if err != nil {
		return false, err
	}
	a, ok := chap.Choose(find(got, "CHAP_A"))
	if !ok {
		return false, fmt.Errorf("%w: the target chose CHAP_A=%.40q of %s", ErrAuth, find(got, "CHAP_A"), l.algorithms)
	}
	l.algorithm = a
	theirs, err := chap.ReadChallenge(a, find(got, "CHAP_I"), find(got, "CHAP_C"))
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrAuth, err)
	}
	keys := []pdu.Key{{Name: "CHAP_N", Value: c.User}, {Name: "CHAP_R", Value: chap.Encode(theirs.Answer(c.Secret))}}
	mutual := len(c.MutualSecret) > 0
	ours := chap.NewChallenge(a)
	if mutual {
		keys = append(keys, pdu.Key{Name: "CHAP_I", Value: fmt.Sprint(ours.Identifier)}, pdu.Key{Name: "CHAP_C", Value: chap.Encode(ours.Value)})
	}
	got, done, err = l.exchange(stageSecurity, stageOperational, true, keys)
	if err != nil || !mutual {
		return done, err
	}
	answer, err := chap.Decode(find(got, "CHAP_R"))
	if err != nil || find(got, "CHAP_N") != c.MutualUser || !ours.Verify(c.MutualSecret, answer) {
		return false, fmt.Errorf("%w: the target does not prove to be %.80s", ErrAuth, c.MutualUser)
	}
	return done, nil
}

func find(keys []pdu.Key, name string) string {
	for _, k := range keys {
		if k.Name == name {
			return k.Value
		}
	}
	return ""
}

// exchange sends one request and takes the whole answer to it. done says that
// the target has gone to the next stage.
func (l *login) exchange(stage, next byte, transit bool, keys []pdu.Key) (got []pdu.Key, done bool, err error) {
	if err := l.send(stage, next, transit, keys); err != nil {
		return nil, false, fmt.Errorf("login: %w", err)
	}
	var text []byte
	for {
		h, data, err := l.receive()
		if err != nil {
			return nil, false, err
		}
		text = append(text, data...)
		if class, detail := h.LoginStatus(); class != 0 {
			return nil, false, refused(class, detail, text)
		}
		if l.text += len(data); l.text > loginTextMax {
			return nil, false, protocolError("login: over %d bytes of text", loginTextMax)
		}
		if h.Flags()&pdu.FlagContinue != 0 {
			if h.Final() {
				return nil, false, protocolError("login: goes on and is done at once")
			}
			if err := l.send(stage, next, false, nil); err != nil {
				return nil, false, fmt.Errorf("login: %w", err)
			}
			continue
		}
		if h.Flags()>>2&3 != stage {
			return nil, false, protocolError("login: the answer is of stage %d, asked was in %d", h.Flags()>>2&3, stage)
		}
		if done = h.Final(); done && (!transit || h.Flags()&3 != next) {
			return nil, false, protocolError("login: went to stage %d unasked", h.Flags()&3)
		}
		if got, err = pdu.ParseText(text); err != nil {
			return nil, false, fmt.Errorf("%w: login: %w", ErrProtocol, err)
		}
		for _, k := range got {
			if l.seen[k.Name] {
				return nil, false, protocolError("login: %s comes twice", k.Name)
			}
			l.seen[k.Name] = true
			if k.Name == "TargetPortalGroupTag" {
				l.w.group = k.Value
			}
		}
		if done {
			l.tsih = h.TSIH()
		}
		return got, done, nil
	}
}

func (l *login) send(stage, next byte, transit bool, keys []pdu.Key) error {
	if l.exchanges++; l.exchanges > loginPDUsMax {
		return protocolError("no end after %d exchanges", loginPDUsMax)
	}
	flags := stage << 2
	if transit {
		flags |= pdu.FlagFinal | next
	}
	var h pdu.Header
	h.Set(pdu.OpLogin, flags)
	h[0] |= immediate
	h.SetISID(l.isid)
	h.SetTSIH(l.tsih)
	h.SetITT(1)
	h.SetCmdSN(l.w.cmdSN)
	h.SetExpStatSN(l.w.expStatSN)
	text := pdu.AppendText(nil, keys...)
	h.SetDataLen(len(text))
	out := append(append(make([]byte, 0, pdu.HeaderLen+len(text)+3), h[:]...), text...)
	_, err := l.w.nc.Write(append(out, make([]byte, -len(text)&3)...))
	return err
}

// immediate is the I bit of byte 0.
const immediate = 0x40

func (l *login) receive() (h pdu.Header, data []byte, err error) {
	if err = l.w.rd.Next(&h); err != nil {
		return h, nil, fmt.Errorf("login: %w", err)
	}
	if h.Opcode() != pdu.OpLoginResp || h.ITT() != 1 {
		return h, nil, protocolError("login: answered by %s", &h)
	}
	data = make([]byte, h.DataLen())
	if err = l.w.rd.Read(data); err != nil {
		return h, nil, fmt.Errorf("login: %w", err)
	}
	l.w.expStatSN = h.StatSN() + 1
	_, l.w.maxCmdSN = h.Window()
	return h, data, nil
}

// refused makes an error of a status.
func refused(class, detail uint8, text []byte) error {
	if class != 1 {
		return &LoginError{class, detail}
	}
	keys, err := pdu.ParseText(text)
	if err != nil {
		return fmt.Errorf("%w: login: %w", ErrProtocol, err)
	}
	address, _, _ := strings.Cut(find(keys, "TargetAddress"), ",")
	to, err := iscsi.HostPort(address)
	if err != nil {
		return fmt.Errorf("%w: login: redirected: %w", ErrProtocol, err)
	}
	return &redirection{to}
}

// goodbye is how long closing may take for politeness.
const goodbye = time.Second
