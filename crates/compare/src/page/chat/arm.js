// Descriptions of arms, and the server's defaults for empty fields of the chat.

/** Descriptions of the two profiles that every model has; the server lists only the others. */
const BUILT_IN = {
  base: "The model by itself: it continues the last message's text, and nothing stands before it.",
  turn: "The conversation in the profile's markup, without its examples.",
};

/** The defaults of the fields, by their names in the request. */
const DEFAULTS = {
  temperature: ({ sampling }) => sampling?.temperature ?? 1,
  top_p: ({ sampling }) => sampling?.top_p ?? 1,
  max_tokens: ({ sampling }) => sampling?.max_tokens ?? "no limit",
  seed: () => "drawn",
  guidance: ({ guidance }) => guidance ?? 0,
};

/** Whether an arm supports guidance: without turns no question can be left empty. */
function canBeGuided(model) {
  return model.profile !== "base";
}

/** A description of an arm, as paragraphs. */
function aboutArm(model, profiles) {
  const used =
    model.adapter === null ? null : make("p", {}, "Adapter ", make("b", {}, model.adapter));
  const usual = profiles.find(({ default_for }) => default_for.includes(model.root));
  const own = profiles.find(({ id }) => id === model.profile);
  if (Object.hasOwn(BUILT_IN, model.profile)) return [make("p", {}, BUILT_IN[model.profile]), used];
  if (own) return [...aboutProfile(own, [own]), used];
  if (model.adapter !== null) {
    const how = "It answers under the profile that it was made for, or else as the model does.";
    return [used, make("p", {}, how)];
  }
  if (!usual) return [make("p", {}, "The model's own chat template.")];
  const variants = profiles.filter(({ variant_of }) => variant_of === usual.id);
  return aboutProfile(usual, [usual, ...variants]);
}

/** A profile's description, and the languages of it and of its variants. */
function aboutProfile({ id, title, description, language }, variants) {
  const languages = variants.map((variant) => languageName(variant.language));
  const chosen = languages.length > 1 ? ", by the first question's language" : "";
  return [
    make("p", {}, "Profile ", make("b", {}, id), ": ", make("span", { lang: language }, title)),
    make("p", { lang: language }, description),
    make(
      "p",
      {},
      `${new Intl.ListFormat("en", { type: "disjunction" }).format(languages)}${chosen}`,
    ),
  ];
}

/** A language's English name, or its tag if that is unknown. */
function languageName(tag) {
  try {
    return new Intl.DisplayNames("en", { type: "language" }).of(tag);
  } catch {
    return tag;
  }
}
