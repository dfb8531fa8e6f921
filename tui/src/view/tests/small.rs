//! Tests with small screens.

use super::*;

fn scene() -> Scene {
    Scene::new(40, 10)
}

#[test]
fn the_help_screen_says_what_keys_do() {
    let mut scene = scene();
    scene.press(&["f1"]);
    insta::assert_snapshot!("small_help", scene.screen());
}

#[test]
fn the_first_screen_is_not_cut_at_its_side() {
    insta::assert_snapshot!("small_first", scene().screen());
}

#[test]
fn whatever_is_compared_stays_in_sight_beside_a_token() {
    let mut scene = scene();
    compared(&mut scene);
    scene.press(&["tab", "tab"]);
    insta::assert_snapshot!("small_token", scene.screen());
    scene.press(&["backtab"]);
    let screen = scene.screen();
    assert!(screen.contains("The capital of France is"), "{screen}");
}

#[test]
fn every_parameter_can_be_reached_and_is_explained() {
    let mut scene = scene();
    scene.press(&["f4"]);
    for field in crate::sampling::FIELDS {
        let screen = scene.screen();
        assert!(screen.contains(field.name), "{screen}");
        let words = field.help.split(' ').next().expect("a word");
        assert!(screen.contains(words), "{screen}");
        scene.press(&["down"]);
    }
}

#[test]
fn a_long_question_leaves_room_for_answers() {
    let mut scene = scene();
    scene.exchange("Hi", "Hello there.");
    scene.write(&"line\n".repeat(30));
    let screen = scene.screen();
    assert!(screen.contains("Hello there."), "{screen}");
}

#[test]
fn how_an_answer_came_is_not_cut() {
    let mut scene = scene();
    scene.exchange("Hi", "Hello there.");
    let screen = scene.screen();
    assert!(screen.contains("0.25 s · 40.0/s · 41 tokens"), "{screen}");
}

#[test]
fn a_servers_long_error_is_shown_to_its_end() {
    let mut scene = scene();
    let failure = Failure::local("cannot reach http://127.0.0.1:54321: Connection refused");
    scene.happen(Event::Arms(Err(failure)));
    let screen = scene.screen();
    assert!(screen.contains("refused"), "{screen}");
    assert!(screen.contains("F3"), "{screen}");
}

#[test]
fn what_went_wrong_is_told_in_more_than_a_row() {
    let mut scene = scene();
    let error = "the session: No space left on device (os error 28)";
    scene.happen(Event::Error(error.into()));
    let joined = scene.screen().replace("\n ", " ");
    assert!(joined.contains(error), "{joined}");
}

#[test]
fn long_words_and_emoji_are_wrapped_within_the_screen() {
    let mut scene = scene();
    let word = "abcdefghij".repeat(20);
    scene.exchange(
        "日本語👨‍👩‍👧と絵文字",
        &format!("{word}end 👩🏽‍🚀日本語の文章はここで終わる。"),
    );
    let screen = scene.screen();
    let joined = screen.replace("\n ", "");
    assert!(
        joined.contains("cdefghijend 👩🏽‍🚀日本語の文章はここで終わる。"),
        "{screen}"
    );
    scene.press(&["ctrl-home"]);
    let screen = scene.screen();
    assert!(screen.contains("日本語👨‍👩‍👧と絵文字"), "{screen}");
}
