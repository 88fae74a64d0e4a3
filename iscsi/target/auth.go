package target

import (
	"fmt"
	"strings"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/chap"
	"github.com/cleave-san/cleave/iscsi/pdu"
)

// errUnknownTarget is what a target that doesn't exist and one that the initiator
// doesn't see have in common.
func errUnknownTarget(name iscsi.Name) error {
	return errAuth("target is unknown or not visible to this initiator: " + string(name))
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
	switch {
	case !l.known:
		return nil, errAuth("initiator is unknown")
	case !right || in["CHAP_N"] != user:
		return nil, errAuth("wrong CHAP name or secret")
	case !l.discovery && !l.c.srv.masks.Sees(l.target, l.initiator):
		// Here, and not at the end as without CHAP: whether the secret was
		// right is not told by the step.
		return nil, errUnknownTarget(l.target)
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
