package embedded

import "testing"

// An operation of an epoch long past keeps all later ones from being idle: who
// waits for an epoch has waited for everything that was admitted before its
// end.
func TestEpochsEndInOrder(t *testing.T) {
	s := &set{}
	s.start(epoch0{})
	idle := func(e *epoch) bool {
		select {
		case <-e.idle:
			return true
		default:
			return false
		}
	}
	slow := s.enter()
	first := s.flip(epoch0{})
	second := s.flip(epoch0{})
	quick := s.enter()
	third := s.flip(epoch0{})
	quick.leave()
	if idle(first) || idle(second) || idle(third) {
		t.Fatal("an epoch is idle although an operation admitted before its end is under way")
	}
	slow.leave()
	if !idle(first) || !idle(second) || !idle(third) || idle(s.cur) {
		t.Fatal("epochs are not idle though all operations are over, or the current one is")
	}
}
